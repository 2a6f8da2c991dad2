"""Let entries lead to other rows in the transaction that hands their keys over.

The entries' shards become parts of it: so a key that one row gives up and another takes has an
entry all the time, whoever dies and whenever, and nobody else gets it in between. Until the shard
has followed the decision the entry is the old one, and locked.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import Connection

from datapatterns.errors import IndexBusyError, IndexKeyTakenError
from datapatterns.index_table.over_shards.entries import Claimed, Entries, Wanted
from datapatterns.index_table.over_shards.net_changes import Entry, Included, Texts
from datapatterns.index_table.over_shards.notes import settings_of, written_as_noted
from datapatterns.index_table.over_shards.owners import Held, busy, has_key
from datapatterns.sharding.companions import Reaching


@dataclass(frozen=True, slots=True)
class Handed:
    """Keys of one index that one transaction hands over.

    Attributes:
        entries: The index.
        gone: Who gives them up.
        come: Who takes them, with their included columns.
    """

    entries: Entries
    gone: set[Entry]
    come: Mapping[Entry, Included]


def hand_over(handed: Sequence[Handed], held: Held, reach: Reaching) -> None:
    """Change the entries of all keys, or of none.

    Args:
        handed: By index.
        held: Locks that the transaction holds, by shard and name.
        reach: Makes shards parts of the transaction.

    Raises:
        IndexBusyError: Others hand the same keys over.
        IndexKeyTakenError: A third row has a key.
        ShardUnavailableError: A shard does not answer.
        StaleShardMapError: Entries have moved.
    """
    todo: list[tuple[Handed, str, list[Texts], Connection]] = []
    for each in handed:
        access, index = each.entries.access, each.entries.index
        shard_map = access.router.map_of(index.group)
        keys = sorted(entry.key for entry in each.come)
        for shard, mine in shard_map.placed(keys, index.place).items():
            with busy(index.name):
                conn = reach(shard, shard_map, shard_map.buckets_of(map(index.place, mine)))
            todo.append((each, shard, mine, conn))
    # Whoever is refused may mend what is wrong, and commit: nothing of this may be left then.
    with ExitStack() as savepoints:
        for conn in {id(conn): conn for *_, conn in todo}.values():
            savepoints.enter_context(conn.begin_nested())
        for each, shard, mine, conn in todo:
            name = each.entries.index.name
            with (
                each.entries.access.asking(shard),
                busy(name),
                written_as_noted(conn, settings_of(conn)),
            ):
                _hand_over(each, mine, conn, held)


def _hand_over(handed: Handed, keys: Sequence[Texts], conn: Connection, held: Held) -> None:
    entries, of_key = handed.entries, {entry.key: entry for entry in handed.come}
    # Locked by their keys alone: of an entry that is handed over just now the lock waits for the
    # end, and shows who has it by then.
    standing = {each.entry.key: each for each in entries.found(conn, keys, lock=True)}
    for key in keys:
        wanted = Wanted(of_key[key], uuid4(), handed.come[of_key[key]])
        seen = standing.get(key)
        if seen is None:  # the index is being built, and has not come to that row
            is_mine = wanted.entry in entries.inserted(conn, [wanted])
        else:
            _refuse_third(handed, seen, wanted.entry, held)
            is_mine = entries.replaced(conn, seen, wanted, carry=True)
        if not is_mine:
            raise IndexBusyError(entries.index.name)


def _refuse_third(handed: Handed, seen: Claimed, wanted: Entry, held: Held) -> None:
    entries = handed.entries
    if seen.entry == wanted or seen.entry in handed.gone:
        return
    is_alive = has_key(
        entries.access,
        entries.index,
        seen.entry,
        held=held,
        lock_seconds=entries.lock_seconds,
    )
    if is_alive:
        raise IndexKeyTakenError(entries.index.name)
