"""Find rows through an index over shards.

An entry may lead nowhere, so every row is read with the condition that it has the key still. If it
has not, the key may have been handed over in between: the entry is read once more, and followed if
it is another claim by then.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, bindparam, select, tuple_
from sqlalchemy.orm import Session

from datapatterns.errors import StaleShardMapError
from datapatterns.index_table.definition import on_rows
from datapatterns.index_table.entries import IndexEntry
from datapatterns.index_table.over_shards.sharded_index import CLAIM, ShardedIndex
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.companions import access_of
from datapatterns.sharding.maps.ownership import owns_buckets
from datapatterns.sharding.strategies.strategy import Key
from datapatterns.sql.metadata import declared_once
from datapatterns.transactions import looking

_LOOKS_MAX = 5
"""How often entries are looked for that move meanwhile."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and which claim it is.

    Attributes:
        entry: What it says.
        claim: Changes whenever the key is claimed.
    """

    entry: IndexEntry
    claim: UUID


def lookup_over_shards(
    session: Session,
    index: ShardedIndex,
    key: Sequence[Any],
    *,
    limit: int,
    after: Sequence[Any] | None = None,
) -> list[Row[Any]]:
    """Return the rows with ``key``, by ascending primary key, at most ``limit``.

    Raises:
        ShardKeyError: The first column of the key is of another type.
        ShardUnavailableError: A shard does not answer.
    """
    access = access_of(session)
    rows: list[Row[Any]] = []
    while len(rows) < limit:
        found = read_entries(access, index, key, limit=limit - len(rows), after=after)
        if not found:
            break
        after = found[-1].entry.primary_key
        rows += _rows_of(session, access, index, key, found)
        if index.definition.unique:
            break
    return rows


def keys_over_shards(
    session: Session,
    index: ShardedIndex,
    key: Sequence[Any],
    *,
    limit: int,
    after: Sequence[Any] | None = None,
) -> list[IndexEntry]:
    """Return the entries with ``key`` by ascending primary key; some may lead nowhere."""
    found = read_entries(access_of(session), index, key, limit=limit, after=after)
    return [each.entry for each in found]


def read_entries(
    access: ShardAccess,
    index: ShardedIndex,
    key: Sequence[Any],
    *,
    limit: int,
    after: Sequence[Any] | None = None,
) -> list[Found]:
    """Return the entries with ``key`` by ascending primary key; some may lead nowhere.

    Args:
        access: The way to the shards.
        index: Which index.
        key: A value for each of its columns.
        limit: At most how many.
        after: Primary key of the last one of the page before.

    Raises:
        ShardKeyError: The first column of the key is of another type.
        ShardUnavailableError: The shard does not answer.
        StaleShardMapError: The entries move all the time.
    """
    if len(key) != len(index.key_columns):
        raise ValueError(f"a key of index {index.name!r} is {list(index.definition.key)}")
    place = index.group.checked_key(key[0])
    for _ in range(_LOOKS_MAX - 1):
        try:
            return _read(access, index, place, key, limit, after)
        except StaleShardMapError:
            continue  # the map has been read again
    return _read(access, index, place, key, limit, after)


def _read(
    access: ShardAccess,
    index: ShardedIndex,
    place: Key,
    key: Sequence[Any],
    limit: int,
    after: Sequence[Any] | None,
) -> list[Found]:
    shard_map = access.router.map_of(index.group)
    shard, bucket = shard_map.shard_of(place), shard_map.strategy.bucket(place)
    owned = owns_buckets(shard_map, [bucket], schema=access.schema)
    statement = _entries_with_key(index).where(owned).limit(limit)
    if after is not None:
        statement = statement.where(tuple_(*index.row_columns) > tuple(after))
    values = {f"key_{at}": value for at, value in enumerate(key)}
    engine = access.companions.side_engines[shard]
    with access.asking(shard), engine.connect() as conn, looking(conn):
        rows = conn.execute(statement, values).mappings().all()
    return [_found(index, row) for row in rows]


def _found(index: ShardedIndex, row: Any) -> Found:  # noqa: ANN401 -- a mapping of any values
    definition = index.definition
    entry = IndexEntry(
        key=tuple(row[name] for name in definition.key),
        primary_key=tuple(row[name] for name in definition.primary_key),
        included={name: row[name] for name in definition.include},
    )
    return Found(entry, row[CLAIM])


def _rows_of(
    session: Session,
    access: ShardAccess,
    index: ShardedIndex,
    key: Sequence[Any],
    found: Iterable[Found],
) -> list[Row[Any]]:
    rows: list[Row[Any]] = []
    for each in found:
        row = _row_of(session, index, key, each.entry)
        if row is None and index.definition.unique:
            again = read_entries(access, index, key, limit=1)
            if again and again[0].claim != each.claim:
                row = _row_of(session, index, key, again[0].entry)
        if row is not None:
            rows.append(row)
    return rows


def _row_of(
    session: Session,
    index: ShardedIndex,
    key: Sequence[Any],
    entry: IndexEntry,
) -> Row[Any] | None:
    base = index.definition.base
    primary = dict(zip(base.primary_key.columns, entry.primary_key, strict=True))
    same = [column == value for column, value in primary.items()]
    computed = index.definition.key.values()
    has_key = [on_rows(part, base) == value for part, value in zip(computed, key, strict=True)]
    statement = select(base).where(*same, *has_key, index.definition.is_indexed(base))
    return session.execute(statement).one_or_none()


@declared_once
def _entries_with_key(index: ShardedIndex) -> Select[Any]:
    same = [
        column == bindparam(f"key_{at}", type_=column.type)
        for at, column in enumerate(index.key_columns)
    ]
    return select(index.table).where(*same).order_by(*index.row_columns)
