"""Compare the copies of a broadcast table, and make them equal again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Numeric,
    Table,
    Text,
    cast,
    column,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import array

from datapatterns.sharding.broadcasting.images import TableShape

CopyKey: TypeAlias = tuple[str, ...]
"""A primary key as PostgreSQL writes it down."""


@dataclass(frozen=True, slots=True)
class CopyDifference:
    """How the copy of one shard differs from that of the shard it is compared with.

    Attributes:
        missing: The primary keys, as text, of rows that it has not.
        surplus: Those of rows that only it has.
        changed: Those of rows that it has otherwise.
    """

    missing: tuple[CopyKey, ...]
    surplus: tuple[CopyKey, ...]
    changed: tuple[CopyKey, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.surplus or self.changed)


@dataclass(frozen=True, slots=True)
class CopyComparison:
    """What the copies of a broadcast table hold.

    Attributes:
        table: Its name.
        source: The shard that the others are compared with.
        rows: How many rows each shard has.
        differences: The shards that differ from the source, and how.
    """

    table: str
    source: str
    rows: Mapping[str, int]
    differences: Mapping[str, CopyDifference]

    @property
    def equal(self) -> bool:
        """Return whether all copies are the same."""
        return not self.differences


def digest_of(conn: Connection, of: Table, shape: TableShape) -> tuple[int, str]:
    """Return how many rows a copy has, and what tells it from another one."""
    total = func.coalesce(func.sum(cast(_hashed(shape), Numeric)), 0)
    rows, digest = conn.execute(select(func.count(), cast(total, Text)).select_from(of)).one()
    return rows, digest


def difference_between(
    source: Mapping[CopyKey, int], other: Mapping[CopyKey, int]
) -> CopyDifference:
    """Return how ``other`` differs from ``source``, both as `rows_of` returns them."""
    return CopyDifference(
        missing=tuple(sorted(source.keys() - other.keys())),
        surplus=tuple(sorted(other.keys() - source.keys())),
        changed=tuple(sorted(k for k in source.keys() & other.keys() if source[k] != other[k])),
    )


def rows_of(conn: Connection, of: Table, shape: TableShape) -> dict[CopyKey, int]:
    """Return the primary keys of a copy's rows, each with a hash of the row."""
    keys = [cast(key, Text) for key in of.primary_key.columns]
    found: Any = conn.execute(select(*keys, _hashed(shape)).select_from(of))
    return {tuple(key): hashed for *key, hashed in found}


def typed_keys(conn: Connection, of: Table, keys: Collection[CopyKey]) -> list[tuple[object, ...]]:
    """Return primary keys as the driver has them, of rows that exist behind ``conn``."""
    columns = list(of.primary_key.columns)
    wanted = {*keys}
    found = conn.execute(select(*columns, *(cast(key, Text) for key in columns)))
    width = len(columns)
    return [tuple(row[:width]) for row in found if tuple(row[width:]) in wanted]


def _hashed(shape: TableShape) -> ColumnElement[int]:
    """Return a hash of a row as text, whatever the order of its columns on this server."""
    values: Sequence[ColumnElement[str]] = [cast(column(name), Text) for name in shape.names]
    return func.hashtextextended(cast(array(values), Text).collate("C"), 0, type_=BigInteger())
