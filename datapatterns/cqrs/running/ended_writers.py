"""Wait for the fences of writers that have ended.

A COMMIT gives up its locks one by one. So whoever waited for one of them may find that a fence of
the same transaction still stands, and the log final only up to what came before it, although the
events show. A mark that is read then is too low by what the transaction appended.
"""

from typing import Final

from sqlalchemy import Connection, func, select

from datapatterns.clock import Clock
from datapatterns.errors import WritersInTheWayError
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore

_LOOK_SECONDS: Final = 0.001


def last_position(conn: Connection, schema: str) -> Position:
    """Return the position of the last event that shows."""
    events = event_tables(schema).all_events.c
    last = select(events.position).order_by(events.position.desc()).limit(1)
    return Position(conn.scalar(last) or START)


def wait_until_final(
    conn: Connection,
    store: EventStore,
    position: Position,
    *,
    waits_for: str,
    seconds: float,
    clock: Clock,
) -> None:
    """Return when the log is final up to ``position``, of an event that shows.

    Args:
        conn: A connection in a READ COMMITTED transaction.
        store: Where the log is.
        position: That of the event.
        waits_for: Which projection does, for the error.
        seconds: For how long at most.
        clock: What waiting goes by.

    Raises:
        WritersInTheWayError: A transaction that raised its fence earlier is still open.
    """
    deadline = clock.monotonic() + seconds
    while store.high_water_mark(conn) < position:
        if clock.monotonic() >= deadline:
            raise WritersInTheWayError(waits_for, seconds=seconds)
        conn.execute(select(func.pg_sleep(_LOOK_SECONDS)))
