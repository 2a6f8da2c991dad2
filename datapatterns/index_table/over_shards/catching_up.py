"""See who has got a key: entries that were handed over may be prepared only, and seen by nobody.

The rows of such a transaction are committed by then, so a row is read that has given the key up,
and the entry leads there still.
"""

from collections.abc import Iterable
from typing import Any

from datapatterns.index_table.over_shards.net_changes import Texts
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.settling import Settling


def end_decided(access: ShardAccess, index: ShardedIndex, keys: Iterable[tuple[Any, ...]]) -> None:
    """Return when entries that are read next show all that had happened before the call.

    They must be read after it, whatever was seen before: somebody else may have ended it meanwhile.

    Args:
        access: The way to the shards.
        index: Which index; keys of one that is not unique are never handed over.
        keys: Whose entries are to be seen.

    Raises:
        BranchesUnsettledError: Something is decided, and nobody could end it.
        ShardUnavailableError: A shard does not answer.
    """
    if not index.definition.unique:
        return
    shard_map = access.router.map_of(index.group)
    placed = shard_map.placed(list(keys), lambda key: index.group.checked_key(key[0]))
    _end_decided_on(access, placed)


def end_decided_texts(access: ShardAccess, index: ShardedIndex, keys: Iterable[Texts]) -> None:
    """Do as `end_decided`, for keys as the server writes them."""
    if index.definition.unique:
        _end_decided_on(access, access.router.map_of(index.group).placed(list(keys), index.place))


def _end_decided_on(access: ShardAccess, shards: Iterable[str]) -> None:
    engines = access.companions.side_engines
    for shard in shards:
        with access.asking(shard), engines[shard].connect() as plain:
            # Each look at what is prepared is as new as can be.
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            Settling(engines, access.schema).settle(conn, shard)
