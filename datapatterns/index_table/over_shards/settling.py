"""Who has a key that two rows seem to have: one of them, or both."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import Connection

from datapatterns.errors import IndexBusyError, StaleShardMapError
from datapatterns.index_table.over_shards.entries import Claimed, Entries, Wanted
from datapatterns.index_table.over_shards.net_changes import Entry, Included, Texts
from datapatterns.index_table.over_shards.owners import has_key

_ROUNDS_MAX = 20
"""How often a key is looked at that changes hands meanwhile."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two rows have one key of a unique index.

    Attributes:
        wanted: The row without entry.
        holder: The row that has the entry.
    """

    wanted: Entry
    holder: Entry


def settle(
    entries: Entries, entry: Entry, included: Included, *, lock_seconds: float
) -> Conflict | None:
    """Make an entry for a row that has its key, unless another row has it; return both then.

    Both are looked at under the key's lock, so whoever is about to commit either of them has ended.

    Args:
        entries: The index.
        entry: Row and key; the row may have got another one meanwhile.
        included: Its included columns.
        lock_seconds: How long to wait for whoever wants the key.

    Raises:
        IndexBusyError: Somebody did not end in that time, or the key changes hands all the time.
        ShardUnavailableError: A shard does not answer.
    """
    for _ in range(_ROUNDS_MAX):
        try:
            done, found = _settled(entries, entry, included, lock_seconds)
        except StaleShardMapError:
            continue  # it has been read again
        if done:
            return found
    raise IndexBusyError(entries.index.name)


def _settled(
    entries: Entries, entry: Entry, included: Included, lock_seconds: float
) -> tuple[bool, Conflict | None]:
    def has(wanted: Entry) -> bool:
        return has_key(entries.access, entries.index, wanted, lock_seconds=lock_seconds)

    if not has(entry):
        return True, None
    wanted = Wanted(entry, uuid4(), included)
    with writing(entries, entry.key) as conn:
        if entry in entries.inserted(conn, [wanted]):
            return True, None
    seen = standing(entries, entry.key)
    if seen is None:
        return False, None
    if seen.entry == entry or not has(seen.entry):
        with writing(entries, entry.key) as conn:
            is_mine = entries.replaced(conn, seen, wanted, carry=seen.entry != entry)
        return is_mine, None
    # What was looked at first may have been given up before the other row has taken it.
    if not has(entry) or standing(entries, entry.key) != seen or not has(seen.entry):
        return False, None
    return True, Conflict(entry, seen.entry)


def standing(entries: Entries, key: Texts) -> Claimed | None:
    """Return the entry of a key of a unique index."""
    [(shard, keys)] = entries.by_shard([key]).items()
    with entries.reading(shard, keys) as conn:
        return next(iter(entries.found(conn, keys)), None)


@contextmanager
def writing(entries: Entries, key: Texts) -> Iterator[Connection]:
    """Give a connection in a transaction on the shard of the entries of a key."""
    [(shard, keys)] = entries.by_shard([key]).items()
    with entries.writing(shard, keys) as conn:
        yield conn
