"""Record with a write which entries it makes obsolete; both commit, or neither does."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from sqlalchemy import Connection, insert, select
from sqlalchemy.sql.dml import ReturningInsert

from datapatterns.cache_aside.schema import cache_tables
from datapatterns.change_log.snapshots import Xid

_ENTRY, _TAG = "e:", "t:"


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What one transaction made obsolete.

    Attributes:
        entries: The names of the entries.
        tags: On which other values depend.
        xid: The transaction.
        prefix: What the keys in Redis begin with; None if nothing has been cached yet.
    """

    entries: tuple[str, ...]
    tags: tuple[str, ...]
    xid: Xid
    prefix: str | None

    @property
    def count(self) -> int:
        """How many entries and tags these are."""
        return len(self.entries) + len(self.tags)


def record_invalidation(
    conn: Connection, entries: Iterable[str], tags: Iterable[str], *, schema: str, target: str
) -> Invalidation:
    """Record both in the caller's transaction; the relay acts on them after the commit."""
    entries, tags = tuple(sorted(set(entries))), tuple(sorted(set(tags)))
    xid, drawn = conn.execute(
        _recording(schema, target), {"cache_keys": keys_of(entries, tags)}
    ).one()
    prefix = None if drawn is None else prefix_of(target, drawn.hex)
    return Invalidation(entries, tags, xid, prefix)


@lru_cache(maxsize=64)
def _recording(schema: str, target: str) -> ReturningInsert[Xid, UUID | None]:
    # Put together once: that takes longer than to execute it.
    tables = cache_tables(schema)
    generation = (
        select(tables.target.c.generation).where(tables.target.c.name == target).scalar_subquery()
    )
    return insert(tables.outbox).returning(tables.outbox.c.xid, generation)


def keys_of(entries: Iterable[str], tags: Iterable[str]) -> list[str]:
    """Return what a row of the outbox calls them."""
    return [*(f"{_ENTRY}{name}" for name in entries), *(f"{_TAG}{name}" for name in tags)]


def entries_in(cache_keys: Iterable[str]) -> list[str]:
    """Return the entries that a row of the outbox names."""
    return [key.removeprefix(_ENTRY) for key in cache_keys if key.startswith(_ENTRY)]


def tags_in(cache_keys: Iterable[str]) -> list[str]:
    """Return the tags that a row of the outbox names."""
    return [key.removeprefix(_TAG) for key in cache_keys if key.startswith(_TAG)]


def prefix_of(target: str, generation: str) -> str:
    """Return what all keys of one generation begin with."""
    return f"{target}:{generation}:"
