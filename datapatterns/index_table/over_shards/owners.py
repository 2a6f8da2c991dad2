"""Whether the row that an entry leads to has its key."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Select, and_, literal_column, select
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import IndexBusyError, StaleShardMapError
from datapatterns.index_table.over_shards.net_changes import Entry
from datapatterns.index_table.over_shards.notes import listed, lock_keys, lock_name, wanted_rows
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex, from_text
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.maps.ownership import owns_buckets
from datapatterns.sql.metadata import declared_once
from datapatterns.transactions import reading

LOCK_NOT_AVAILABLE = "55P03"

_LOOKS_MAX = 5
"""How often a row is looked for that moves meanwhile."""


def has_key(
    access: ShardAccess,
    index: ShardedIndex,
    entry: Entry,
    *,
    held: frozenset[tuple[str, str]] = frozenset(),
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
    held: frozenset[tuple[str, str]],
    lock_seconds: float,
) -> bool:
    base = index.definition.base
    shard_key = access.placements.shard_key(base)
    assert shard_key is not None  # it was checked when the index was taken on
    texts = dict(zip(index.definition.primary_key, entry.row, strict=True))
    key = shard_key.group.parsed_key(*(texts[name] for name in shard_key.columns))
    shard_map = access.router.map_of(shard_key.group)
    shard, bucket = shard_map.shard_of(key), shard_map.strategy.bucket(key)
    name = lock_name(index, entry)
    engine = access.companions.side_engines[shard]
    with access.asking(shard), engine.connect() as conn:
        # A snapshot of the caller's may be older than the row.
        fresh = conn.execution_options(isolation_level="READ COMMITTED")
        with reading(fresh):
            if (shard, name) not in held:
                with busy(index.name):
                    lock_keys(fresh, [name], schema=access.schema, seconds=lock_seconds)
            # In the same statement: a shard that has lost the bucket would just show no row.
            owned = owns_buckets(shard_map, [bucket], schema=access.schema)
            found = _row_with_key(index).where(owned)
            parameters = listed([(*entry.row, *entry.key)], len(entry.row) + len(entry.key))
            return fresh.execute(found, parameters).first() is not None


@contextmanager
def busy(index: str) -> Iterator[None]:
    """Say what it means that a lock was not to be had.

    Raises:
        IndexBusyError: Somebody else holds it.
    """
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
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
