"""Whether the row that an entry leads to has its key."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from sqlalchemy import Select, and_, literal_column, select
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import IndexBusyError, IndexDefinitionError, StaleShardMapError
from datapatterns.index_table.over_shards.net_changes import Entry, Texts
from datapatterns.index_table.over_shards.notes import (
    KeyLock,
    listed,
    lock_keys,
    lock_of,
    wanted_rows,
)
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex, from_text
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.maps.ownership import owns_buckets
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sql.metadata import declared_once
from datapatterns.transactions import reading

Held: TypeAlias = frozenset[tuple[str, KeyLock]]
"""Locks of a transaction, each with its shard."""

# Not to be had in time; or two wait for each other, and this one was chosen to give up.
_BUSY = {"55P03", "40P01"}

_LOOKS_MAX = 5
"""How often a row is looked for that moves meanwhile."""


def has_key(
    access: ShardAccess,
    index: ShardedIndex,
    entry: Entry,
    *,
    held: Held = frozenset(),
    lock_seconds: float,
) -> bool:
    """Return whether the row of ``entry`` has its key, or has committed to by the time of this.

    The lock waits for whoever may be about to commit that row: it has it since before its claim
    could be seen. A row that is not committed yet cannot be seen, and cannot be waited for.

    Args:
        access: The way to the shards.
        index: Which index.
        entry: Key and row.
        held: Locks that the caller's own transaction holds, by shard and name: waiting for those
            would be for ever, and nobody else can have them.
        lock_seconds: How long to wait.

    Raises:
        IndexBusyError: Somebody did not end in that time.
        ShardUnavailableError: The shard of the row does not answer.
        StaleShardMapError: The row moves all the time.
    """
    for _ in range(_LOOKS_MAX - 1):
        try:
            return _look(access, index, entry, held, lock_seconds)
        except StaleShardMapError:
            continue  # it has been read again
    return _look(access, index, entry, held, lock_seconds)


def _look(
    access: ShardAccess,
    index: ShardedIndex,
    entry: Entry,
    held: Held,
    lock_seconds: float,
) -> bool:
    shard_map, by_shard = buckets_of_rows(access, index, [entry.row])
    [(shard, (buckets, _))] = by_shard.items()
    lock = lock_of(index, entry)
    engine = access.companions.side_engines[shard]
    with access.asking(shard), engine.connect() as conn:
        # A snapshot of the caller's may be older than the row.
        fresh = conn.execution_options(isolation_level="READ COMMITTED")
        with reading(fresh):
            if (shard, lock) not in held:
                with busy(index.name):
                    lock_keys(fresh, [lock], schema=access.schema, seconds=lock_seconds)
            # In the same statement: a shard that has lost the bucket would just show no row.
            owned = owns_buckets(shard_map, buckets, schema=access.schema)
            found = _row_with_key(index).where(owned)
            parameters = listed([(*entry.row, *entry.key)], len(entry.row) + len(entry.key))
            return fresh.execute(found, parameters).first() is not None


def buckets_of_rows(
    access: ShardAccess, index: ShardedIndex, rows: Iterable[Texts]
) -> tuple[ShardMap, dict[str, tuple[frozenset[int], list[Texts]]]]:
    """Return where rows are, by their primary keys: the map, and by shard their buckets and them.

    Raises:
        IndexDefinitionError: The table is not sharded by a group of the cluster.
    """
    definition = index.definition
    shard_key = access.placements.shard_key(definition.base)
    if shard_key is None:
        raise IndexDefinitionError(
            definition.name, f"{definition.base.fullname} is not sharded; keep it in mode 'local'"
        )
    shard_map = access.router.map_of(shard_key.group)
    places = [definition.primary_key.index(name) for name in shard_key.columns]
    keys = {row: shard_key.group.parsed_key(*(row[at] for at in places)) for row in rows}
    placed = shard_map.placed(keys, keys.__getitem__)
    return shard_map, {
        shard: (shard_map.buckets_of(keys[row] for row in mine), mine)
        for shard, mine in placed.items()
    }


@contextmanager
def busy(index: str) -> Iterator[None]:
    """Say what it means that a lock was not to be had.

    Raises:
        IndexBusyError: Somebody else holds it.
    """
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _BUSY:
            raise IndexBusyError(index) from error
        raise


@declared_once
def _row_with_key(index: ShardedIndex) -> Select[Any]:
    base = index.definition.base
    primary = list(base.primary_key.columns)
    wanted = wanted_rows(len(primary) + len(index.definition.key))
    computed = index.definition.projection(base)
    key = [
        computed[name] == from_text(wanted.c[f"c{at}"], index.table.c[name])
        for at, name in enumerate(index.definition.key, start=len(primary))
    ]
    same = [own == from_text(wanted.c[f"c{at}"], own) for at, own in enumerate(primary)]
    return (
        select(literal_column("1"))
        .select_from(wanted.join(base, and_(*same)))
        .where(*key, index.definition.is_indexed(base))
    )
