"""How the relay of a Redis stands: what waits to be sent, and what that server holds."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, func, or_, select

from datapatterns.cache_aside.capturing import consumer_of, read_followed_by_name
from datapatterns.cache_aside.cluster_links import AnyLinks
from datapatterns.cache_aside.invalidating import prefix_of
from datapatterns.cache_aside.links import Place
from datapatterns.cache_aside.redis_commands import ENTRIES_PER_CALL
from datapatterns.cache_aside.schema import cache_tables
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.change_log.lagging import count_pending

WAITING_MAX = 1_000_000
"""So far what waits is counted."""


@dataclass(frozen=True, slots=True)
class FollowedTable:
    """A captured table whose changes a relay sends on.

    Attributes:
        name: Its schema and name.
        caches: Caches whose entries are named by its primary key.
        further_columns: Columns that are not logged: as long as there are any, everything is
            forgotten each round. Its owner has to capture it again.
    """

    name: str
    caches: tuple[str, ...]
    further_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """How a relay stands.

    Attributes:
        target: The name of its Redis.
        is_known: Whether a round has ever ended.
        round_age_seconds: How long ago the last round ended; None if none has.
        waiting_rows: How many invalidations and captured changes are not sent yet, counted up to
            a million.
        waiting_seconds: For how long the oldest of these has been waiting at most; 0 if none is.
        followed: The captured tables that it follows.
        is_vouched_for: Whether hits are served: a round has ended lately, for the server that
            answers now. None if Redis did not answer.
        values: How many values each cache has there; empty if Redis did not answer.
    """

    target: str
    is_known: bool
    round_age_seconds: float | None
    waiting_rows: int
    waiting_seconds: float
    followed: tuple[FollowedTable, ...]
    is_vouched_for: bool | None = None
    values: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lag:
    """What is not sent yet.

    Attributes:
        rows: How many invalidations and captured changes.
        seconds: For how long the oldest has been waiting at most; 0 if none is.
    """

    rows: int
    seconds: float


def read_lag(conn: Connection, *, schema: str, target: str) -> Lag:
    """Return what the relay of ``target`` has not sent yet."""
    tables = cache_tables(schema)
    outbox, own = tables.outbox, tables.target
    snapshot = select(own.c.snapshot).where(own.c.name == target).scalar_subquery()
    unsent = or_(
        outbox.c.xid >= func.pg_snapshot_xmax(snapshot),
        outbox.c.xid.in_(select(func.pg_snapshot_xip(snapshot))),
    )
    waiting = select(outbox.c.created_at).where(unsent).limit(WAITING_MAX).subquery()
    age = func.extract("epoch", func.clock_timestamp() - func.min(waiting.c.created_at))
    recorded, oldest = conn.execute(select(func.count(), age).select_from(waiting)).one()
    followed = read_followed_by_name(conn, schema=schema, target=target)
    logs = sorted({each.log_name for _, each in followed})
    captured = 0
    if logs:
        consumer = consumer_of(target)
        captured = count_pending(conn, consumer, logs, schema=schema, limit=WAITING_MAX)
    seconds = max(0.0, float(oldest or 0))
    if captured:
        # A log does not say when; the last round has seen none of them.
        seconds = max(seconds, read_round_age(conn, schema=schema, target=target) or 0.0)
    return Lag(recorded + captured, seconds)


def read_round_age(conn: Connection, *, schema: str, target: str) -> float | None:
    """Return how many seconds ago the last round ended; None if none has."""
    own = cache_tables(schema).target
    age = func.extract("epoch", func.clock_timestamp() - own.c.relayed_at)
    found = conn.scalar(select(age).where(own.c.name == target))
    return None if found is None else max(0.0, float(found))


def read_prefix(conn: Connection, *, schema: str, target: str) -> str | None:
    """Return what keys of ``target`` begin with now; None if no round has ended."""
    own = cache_tables(schema).target
    generation = conn.scalar(select(own.c.generation).where(own.c.name == target))
    return None if generation is None else prefix_of(target, generation.hex)


def read_followed_tables(
    conn: Connection, *, schema: str, target: str
) -> tuple[FollowedTable, ...]:
    """Return the tables that the relay of ``target`` follows, by name."""
    found = read_followed_by_name(conn, schema=schema, target=target)
    return tuple(
        FollowedTable(f"{name[0]}.{name[1]}", each.caches, each.further_columns)
        for name, each in sorted(found, key=lambda pair: pair[0])
    )


def count_values(links: AnyLinks, prefix: str) -> dict[str, int]:
    """Return how many values each cache has, by its name.

    Raises:
        CacheSilence: Redis did not answer.
    """
    begin = f"{prefix}value:{{"
    names = (name.removeprefix(begin).partition(":")[0] for name in _names(links, f"{begin}*"))
    return dict(sorted(Counter(names).items()))


def _names(links: AnyLinks, pattern: str) -> Iterator[str]:
    seen = set[bytes]()
    for place in links.places(links.current_identity()):
        for names in scanned(links, place, pattern):
            fresh = [name for name in names if name not in seen]  # it may come twice
            seen.update(fresh)
            yield from (name.decode(errors="replace") for name in fresh)


def scanned(links: AnyLinks, place: Place, pattern: str) -> Iterator[Sequence[bytes]]:
    """Return the keys on one server that match ``pattern``, in portions; some may come twice.

    Raises:
        CacheSilence: It did not answer.
    """
    cursor = b"0"
    while True:
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", ENTRIES_PER_CALL)
        [reply] = links.call_at(place, [command])
        match reply:
            case [bytes(cursor), list(names)]:
                yield names
            case _:
                raise CacheSilence("an unexpected reply to SCAN")
        if cursor == b"0":
            return
