"""What a checkpoint on another server remembers of the log, to notice that it is another one.

A server that crashes, fails over to a standby that was behind, or is restored from a backup loses
the end of its log, and draws the same positions again for other events. A checkpoint in the same
database goes back with it; one elsewhere stays ahead, and as soon as the log has grown past it,
nothing would tell. So beside such a checkpoint the newest events at it are kept by their ids.

It is a sample: what was lost further down, because its transaction was still open while this many
later events became visible, is not noticed. Nor is a change of what an event says.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Self

from sqlalchemy import (
    BigInteger,
    CompoundSelect,
    Connection,
    Select,
    bindparam,
    false,
    select,
    true,
    union_all,
)

from datapatterns.errors import LogChangedError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.log.log_statements import size_of
from datapatterns.event_sourcing.schema import event_tables

WITNESS_EVENTS: Final = 32
"""How many events a witness names; each is a look into an index, once per page."""

_EVENT: Final = re.compile(r"([0-9]{1,19}):([0-9a-f]{32})", re.ASCII)


@dataclass(frozen=True, slots=True)
class LogWitness:
    """The newest events up to a position, oldest first; fewer only if there are no more.

    >>> LogWitness.parsed(LogWitness(((7, "0" * 31 + "1"),)).text)
    LogWitness(events=((7, '00000000000000000000000000000001'),))
    """

    events: tuple[tuple[int, str], ...] = ()

    @property
    def since(self) -> int:
        """From which position on it knows all events."""
        return self.events[0][0] if len(self.events) >= WITNESS_EVENTS else 0

    @property
    def text(self) -> str:
        """How it is kept."""
        return " ".join(f"{position}:{event_id}" for position, event_id in self.events)

    @classmethod
    def parsed(cls, text: str) -> Self | None:
        """Return what `text` stands for, None if it is no witness."""
        matches = [_EVENT.fullmatch(part) for part in text.split()]
        if None in matches:
            return None
        return cls(tuple((int(found[1]), found[2]) for found in matches if found))

    def lost(self, found: Self) -> set[int] | None:
        """Return which of these events are not among those that are ``found`` at the position.

        None if there are others, so that the log cannot be the same.
        """
        known = set(self.events)
        now = {event for event in found.events if event[0] >= self.since}
        return None if now - known else {position for position, _ in known - now}


def read_witness(conn: Connection, schema: str, at: Position) -> LogWitness:
    """Return what the log of ``schema`` holds at ``at``, which must be final."""
    rows = conn.execute(_newest(schema, size_of(at)), {"at": at}).all()
    return LogWitness(tuple((position, event_id.hex) for position, event_id in reversed(rows)))


def read_witnesses(
    conn: Connection, schema: str, after: Position, to: Position
) -> tuple[LogWitness, LogWitness]:
    """Return what the log holds where a page begins and where it ends, in one round trip."""
    rows = conn.execute(_newest_of_both(schema, size_of(to)), {"after": after, "to": to}).all()
    begin, end = (
        LogWitness(tuple((p, i.hex) for is_end, p, i in reversed(rows) if is_end is wanted))
        for wanted in (False, True)
    )
    return begin, end


def check_witness(
    conn: Connection, schema: str, witness: LogWitness, at: Position, *, followed_by: str
) -> None:
    """Refuse to go on from ``at`` in a log that is not the one that ``witness`` was read in.

    Args:
        conn: A connection of the log's primary in a READ COMMITTED transaction.
        schema: Where the log is.
        witness: What `read_witness` returned when the checkpoint got to ``at``.
        at: The checkpoint.
        followed_by: Whose checkpoint it is, for the error.

    Raises:
        LogChangedError: Events that were there are gone without having been purged, or there are
            others in their place.
    """
    lost = witness.lost(read_witness(conn, schema, at))
    if lost is None:
        raise LogChangedError(followed_by, position=at)
    if lost:
        positions = event_tables(schema).tombstones.c.position
        lost -= set(conn.scalars(select(positions).where(positions.in_(lost))))
    if lost:
        raise LogChangedError(followed_by, position=at)


@cache
def _newest(schema: str, size: int) -> Select[Any]:
    return _window(schema, "at", size)


@cache
def _newest_of_both(schema: str, size: int) -> CompoundSelect[Any]:
    begin = _window(schema, "after", size).subquery()
    end = _window(schema, "to", size).subquery()
    both = union_all(
        select(false().label("is_end"), begin.c.position, begin.c.event_id),
        select(true(), end.c.position, end.c.event_id),
    )
    return both.order_by("is_end", both.selected_columns.position.desc())


def _window(schema: str, at: str, size: int) -> Select[Any]:
    events = event_tables(schema).all_events
    return (
        select(events.c.position, events.c.event_id)
        # Another statement when the log has doubled: a kept plan of a small one would scan it.
        .prefix_with(f"/* up to {2**size} events */")
        .where(events.c.position <= bindparam(at, type_=BigInteger))
        .order_by(events.c.position.desc())
        .limit(WITNESS_EVENTS)
    )
