"""Checksums of read models in tables, computed by the server: equal rows give equal ones.

A row's hash is that of PostgreSQL's hash joins, so it goes by what ``=`` means for each type:
1.0 is 1.00, a moment is the same in every zone, -0.0 is 0.0, citext knows no case, NULL is NULL.
Rows are put into buckets by the hash of their key, so that only those buckets need be looked at
whose checksums differ.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

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


@dataclass(frozen=True, slots=True)
class Checksums:
    """What a table holds, in figures: how many rows of each bucket, and their checksum."""

    by_bucket: Mapping[int, tuple[int, int]]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(rows for rows, _ in self.by_bucket.values())

    @property
    def text(self) -> str:
        """All of it in 16 hexadecimal digits."""
        whole = repr(sorted(self.by_bucket.items()))
        return sha256(whole.encode()).hexdigest()[:16]

    def differing(self, other: "Checksums") -> list[int]:
        """Return the buckets that the two do not share."""
        mine, theirs = self.by_bucket, other.by_bucket
        return sorted(b for b in mine.keys() | theirs.keys() if mine.get(b) != theirs.get(b))


def read_checksums(conn: Connection, model: ReadModel) -> Checksums | None:
    """Return the checksums of a table; None if a column is of a type that has no hash.

    Price: one scan, and about as much again for the hashes.
    """
    bucket = bucket_of(model)
    of_row = func.hash_record_extended(func.row(*comparable(model.columns)), literal_column("1"))
    # The hash of a record adds those of its columns up, each times a power of 31. Unless each is
    # mixed before they are put together, two rows that swap a value look as they did before.
    mixed = func.hashint8extended(of_row, literal_column("2"))
    statement = select(bucket, func.count(), func.bit_xor(mixed)).group_by(bucket)
    savepoint = conn.begin_nested()
    try:
        found = conn.execute(statement).all()
    except ProgrammingError as error:
        savepoint.rollback()
        if getattr(error.orig, "sqlstate", None) == _UNDEFINED_FUNCTION:
            return None
        raise
    savepoint.commit()
    return Checksums({bucket: (rows, checksum) for bucket, rows, checksum in found})


def is_in_buckets(model: ReadModel, buckets: Collection[int]) -> ColumnElement[bool]:
    """Return the condition that a row is in one of ``buckets``."""
    return bucket_of(model) == any_(literal(list(buckets), ARRAY(Integer)))


def bucket_of(model: ReadModel) -> ColumnElement[int]:
    """Return the bucket of a row, by the hash of its key."""
    of_key = func.hash_record_extended(
        func.row(*comparable(model.key_columns)), literal_column("0"), type_=BigInteger
    )
    return cast(of_key.bitwise_and(literal_column(str(BUCKETS - 1))), Integer)
