"""Find rows through an index over shards.

An entry may lead nowhere, so every row is read with the condition that it has the key still. If it
has not, the key may have been handed over in between: the entry is read once more, and followed if
it is another claim by then.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, and_, bindparam, select, tuple_
from sqlalchemy.orm import Session

from datapatterns.errors import StaleShardMapError
from datapatterns.index_table.definition import on_rows
from datapatterns.index_table.entries import IndexEntry
from datapatterns.index_table.over_shards.notes import listed, noted_rows, wanted_rows
from datapatterns.index_table.over_shards.readable import may_be_read, telling_state
from datapatterns.index_table.over_shards.sharded_index import CLAIM, ShardedIndex, from_text
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.companions import over_shards
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

    Rows that the session has written are found as it has written them, though others do not find
    them yet.

    Raises:
        ShardKeyError: The first column of the key is of another type.
        ShardUnavailableError: A shard does not answer.
    """
    if session.autoflush:
        session.flush()
    access, start = over_shards(session).shard_access, after
    found: dict[tuple[Any, ...], Row[Any]] = {}
    ended = False
    while not ended and len(found) < limit:
        wanted = limit - len(found)
        page = read_entries(access, index, key, limit=wanted, after=after)
        found |= _rows_of(session, access, index, key, page)
        ended = len(page) < wanted or index.definition.unique
        after = page[-1].entry.primary_key if page else after
    for primary in own_rows(session, index, key):
        # What comes after the last page is for the next one.
        is_between = (start is None or primary > tuple(start)) and (
            ended or after is None or primary <= tuple(after)
        )
        if is_between and primary not in found:
            row = _row_of(session, index, key, primary)
            found |= {} if row is None else {primary: row}
    # Python orders values of these types as the server does.
    return [found[primary] for primary in sorted(found)][:limit]


def own_rows(session: Session, index: ShardedIndex, key: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return the primary keys of rows that the session's transaction has given ``key``."""
    context = over_shards(session)
    found: list[tuple[Any, ...]] = []
    for shard, conn in context.written_parts.items():
        with context.shard_access.asking(shard):
            if rows := noted_rows(conn, index, schema=context.shard_access.schema):
                values = {f"key_{at}": value for at, value in enumerate(key)}
                parameters = listed(sorted(rows), len(index.row_columns)) | values
                found += [tuple(row) for row in conn.execute(_own_rows(index), parameters)]
    return found


def keys_over_shards(
    session: Session,
    index: ShardedIndex,
    key: Sequence[Any],
    *,
    limit: int,
    after: Sequence[Any] | None = None,
) -> list[IndexEntry]:
    """Return the entries with ``key`` by ascending primary key; some may lead nowhere."""
    access = over_shards(session).shard_access
    found = read_entries(access, index, key, limit=limit, after=after)
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
    with access.asking(shard), engine.connect() as conn, looking(conn), telling_state(index):
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
) -> dict[tuple[Any, ...], Row[Any]]:
    rows: dict[tuple[Any, ...], Row[Any]] = {}
    for each in found:
        primary = each.entry.primary_key
        row = _row_of(session, index, key, primary)
        if row is None and index.definition.unique:
            again = read_entries(access, index, key, limit=1)
            if again and again[0].claim != each.claim:
                primary = again[0].entry.primary_key
                row = _row_of(session, index, key, primary)
        if row is not None:
            rows[primary] = row
    return rows


def _row_of(
    session: Session, index: ShardedIndex, key: Sequence[Any], primary_key: Sequence[Any]
) -> Row[Any] | None:
    base = index.definition.base
    primary = zip(base.primary_key.columns, primary_key, strict=True)
    same = [column == value for column, value in primary]
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
    return select(index.table).where(may_be_read(index), *same).order_by(*index.row_columns)


@declared_once
def _own_rows(index: ShardedIndex) -> Any:  # noqa: ANN401 -- a Select of as many columns
    base = index.definition.base
    wanted = wanted_rows(len(index.row_columns))
    primary = list(base.primary_key.columns)
    same = [own == from_text(wanted.c[f"c{at}"], own) for at, own in enumerate(primary)]
    has_key = [
        on_rows(part, base) == bindparam(f"key_{at}", type_=index.table.c[name].type)
        for at, (name, part) in enumerate(index.definition.key.items())
    ]
    return (
        select(*primary)
        .select_from(wanted.join(base, and_(*same)))
        .where(*has_key, index.definition.is_indexed(base))
    )
