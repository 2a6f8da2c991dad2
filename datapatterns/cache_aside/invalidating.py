"""Record with a write which entries it makes obsolete; both commit, or neither does."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from datapatterns.cache_aside.schema import cache_tables
from datapatterns.change_log.snapshots import Xid

_ENTRY = "e:"


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What one transaction made obsolete.

    Attributes:
        entries: The names of the entries.
        xid: The transaction.
        prefix: What the keys in Redis begin with; None if nothing has been cached yet.
    """

    entries: tuple[str, ...]
    xid: Xid
    prefix: str | None


def record_invalidation(
    conn: Connection, entries: Iterable[str], *, schema: str, target: str
) -> Invalidation:
    """Record ``entries`` in the caller's transaction; the relay acts on it after the commit."""
    names = tuple(sorted(set(entries)))
    tables = cache_tables(schema)
    generation = (
        select(tables.target.c.generation).where(tables.target.c.name == target).scalar_subquery()
    )
    xid, drawn = conn.execute(
        insert(tables.outbox)
        .values(cache_keys=[f"{_ENTRY}{name}" for name in names])
        .returning(tables.outbox.c.xid, generation)
    ).one()
    return Invalidation(names, xid, None if drawn is None else prefix_of(target, drawn.hex))


def entries_in(cache_keys: Iterable[str]) -> list[str]:
    """Return the entries that a row of the outbox names."""
    return [key.removeprefix(_ENTRY) for key in cache_keys]


def prefix_of(target: str, generation: str) -> str:
    """Return what all keys of one generation begin with."""
    return f"{target}:{generation}:"
