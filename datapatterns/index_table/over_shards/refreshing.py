"""Bring the included columns of entries to what their rows say.

After the commit, and as compare-and-swap on the claim: plain updates of two transactions could
arrive in the wrong order, and stay wrong. Between the commit and this they are what they were, and
after a crash until they are repaired.
"""

from collections.abc import Iterable
from uuid import uuid4

from datapatterns.errors import IndexBusyError
from datapatterns.index_table.over_shards.entries import Claimed, Entries, Wanted
from datapatterns.index_table.over_shards.net_changes import Entry, Included, Texts
from datapatterns.index_table.over_shards.notes import entries_of_rows
from datapatterns.index_table.over_shards.owners import buckets_of_rows
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.maps.ownership import owns_buckets
from datapatterns.transactions import looking

_ROUNDS_MAX = 20
"""How often entries are tried that others claim meanwhile."""


def refresh(access: ShardAccess, index: ShardedIndex, wanted: Iterable[Entry]) -> None:
    """Bring the included columns of ``wanted`` to what their rows say now.

    Entries that are gone, or whose rows are, are left alone.

    Raises:
        IndexBusyError: Others change the same entries all the time.
        ShardUnavailableError: A shard does not answer.
        StaleShardMapError: Entries or rows have moved.
    """
    entries, waiting = Entries(access, index), {*wanted}
    for _ in range(_ROUNDS_MAX):
        if not waiting:
            return
        # In this order: what is read of a row is at least as new as the claim.
        seen = _seen(entries, waiting)
        rows = rows_now(access, index, {each.entry.row for each in seen})
        still = [each for each in seen if each.entry in rows]
        waiting = {each.entry for each in still} - _written(entries, still, rows)
    if waiting:
        raise IndexBusyError(index.name)


def rows_now(
    access: ShardAccess, index: ShardedIndex, rows: Iterable[Texts]
) -> dict[Entry, Included]:
    """Return the entries that committed rows have at this moment, with their included columns.

    Raises:
        ShardUnavailableError: A shard does not answer.
        StaleShardMapError: Rows have moved.
    """
    found: dict[Entry, Included] = {}
    shard_map, by_shard = buckets_of_rows(access, index, rows)
    for shard, (buckets, mine) in by_shard.items():
        owned = owns_buckets(shard_map, buckets, schema=access.schema)
        engine = access.companions.side_engines[shard]
        with access.asking(shard), engine.connect() as conn:
            fresh = conn.execution_options(isolation_level="READ COMMITTED")
            with looking(fresh):
                found |= entries_of_rows(fresh, index, mine, owned=owned)
    return found


def _seen(entries: Entries, wanted: set[Entry]) -> list[Claimed]:
    found: list[Claimed] = []
    for shard, keys in entries.by_shard(entry.key for entry in wanted).items():
        with entries.reading(shard, keys) as conn:
            found += [each for each in entries.found(conn, keys) if each.entry in wanted]
    return found


def _written(entries: Entries, seen: Iterable[Claimed], rows: dict[Entry, Included]) -> set[Entry]:
    by_key: dict[Texts, list[Claimed]] = {}
    for each in seen:
        by_key.setdefault(each.entry.key, []).append(each)
    done: set[Entry] = set()
    for shard, keys in entries.by_shard(by_key).items():
        mine = [
            (each, Wanted(each.entry, uuid4(), rows[each.entry]))
            for key in keys
            for each in by_key[key]
        ]
        with entries.writing(shard, keys) as conn:
            done |= entries.refreshed(conn, mine)
    return done
