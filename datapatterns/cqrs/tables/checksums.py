"""Checksums of read models in tables, computed by the server: equal rows give equal ones.

A row's hash is that of PostgreSQL's hash joins, so it goes by what ``=`` means for each type:
1.0 is 1.00, a moment is the same in every zone, -0.0 is 0.0, citext knows no case, NULL is NULL.
Rows are put into buckets by the hash of their key, so that only those buckets need be looked at
whose checksums differ.
"""

from collections.abc import Collection
from hashlib import sha256
from typing import Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    any_,
    cast,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.exc import ProgrammingError

from datapatterns.cqrs.tables.comparable import comparable
from datapatterns.cqrs.tables.read_model import ReadModel

BUCKETS: Final = 4_096
"""A power of two. One row that differs costs the comparison of as many as a bucket has."""

_UNDEFINED_FUNCTION: Final = "42883"


class Checksum(NamedTuple):
    """How many rows there are, and what comes of their hashes; in whichever order they are."""

    rows: int
    hashes: int

    @property
    def text(self) -> str:
        """All of it in 16 hexadecimal digits."""
        return sha256(f"{self.rows} {self.hashes}".encode()).hexdigest()[:16]


def read_checksum(conn: Connection, model: ReadModel) -> Checksum | None:
    """Return the checksum of a table; None if a column is of a type that has no hash.

    Price: a scan, and about twice as much again for the hashes.
    """
    savepoint = conn.begin_nested()
    try:
        rows, hashes = conn.execute(select(func.count(), _together(model))).one()
    except ProgrammingError as error:
        savepoint.rollback()
        if getattr(error.orig, "sqlstate", None) == _UNDEFINED_FUNCTION:
            return None
        raise
    savepoint.commit()
    return Checksum(rows, hashes)


def differing_buckets(
    left: tuple[Connection, ReadModel], right: tuple[Connection, ReadModel]
) -> list[int]:
    """Return the buckets that two tables do not share; several times the price of a checksum."""
    mine, theirs = _by_bucket(*left), _by_bucket(*right)
    return sorted(b for b in mine.keys() | theirs.keys() if mine.get(b) != theirs.get(b))


def _by_bucket(conn: Connection, model: ReadModel) -> dict[int, Checksum]:
    bucket = bucket_of(model)
    found = conn.execute(select(bucket, func.count(), _together(model)).group_by(bucket))
    return {number: Checksum(rows, hashes) for number, rows, hashes in found}


def _together(model: ReadModel) -> ColumnElement[int]:
    of_row = func.hash_record_extended(func.row(*comparable(model.columns)), literal_column("1"))
    # Not their sum: the hash of a record is one of those of its columns, so two rows that have
    # swapped a value would look as they did before.
    return func.coalesce(func.bit_xor(of_row), literal_column("0"), type_=BigInteger)


def is_in_buckets(model: ReadModel, buckets: Collection[int]) -> ColumnElement[bool]:
    """Return the condition that a row is in one of ``buckets``."""
    return bucket_of(model) == any_(literal(list(buckets), ARRAY(Integer)))


def bucket_of(model: ReadModel) -> ColumnElement[int]:
    """Return the bucket of a row, by the hash of its key."""
    of_key = func.hash_record_extended(
        func.row(*comparable(model.key_columns)), literal_column("0"), type_=BigInteger
    )
    return cast(of_key.bitwise_and(literal_column(str(BUCKETS - 1))), Integer)
