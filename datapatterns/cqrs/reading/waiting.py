"""Read your own writes: wait until a read model shows a position of the log."""

from collections.abc import Callable

from sqlalchemy import Connection, Engine, select

from datapatterns.clock import Clock
from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.running.leasing import read_live_version
from datapatterns.cqrs.running.running import POLL_SECONDS_MAX, POLL_SECONDS_MIN
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.errors import ReadModelBehindError
from datapatterns.event_sourcing.events import Position


def wait_for(
    engine: Engine,
    reached: Callable[[Connection], Position | None],
    token: Position,
    *,
    timeout_seconds: float,
    clock: Clock,
) -> Position | None:
    """Return how far a read model is once that is at least ``token``, or the time has passed.

    Polls, each time in a transaction of its own: 2 ms after the first look, then ever more
    slowly until 50 ms lie between two looks.
    """
    deadline = clock.monotonic() + timeout_seconds
    pause = POLL_SECONDS_MIN
    while True:
        with engine.connect() as conn:  # and back to the pool, where a runner may wait for it
            position = reached(conn)
        left = deadline - clock.monotonic()
        if left <= 0 or (position is not None and position >= token):
            return position
        clock.sleep(min(pause, left))
        pause = min(2 * pause, POLL_SECONDS_MAX)


def behind(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    *,
    position: Position | None,
    token: Position,
) -> ReadModelBehindError:
    """Return the error of a wait that was too short, with what stopped the runner if anything."""
    error = conn.scalar(
        select(tables.shards.c.error).where(
            tables.shards.c.name == projection.name,
            tables.shards.c.version == projection.version,
        )
    )
    live = read_live_version(conn, tables, projection)
    stopped = None
    if error is not None:
        stopped = f"stopped before {error['event_type']} at {error['position']}: {error['error']}"
    elif live is not None and live != projection.version and issubclass(projection, Projection):
        stopped = f"version {live} has built the table"
    return ReadModelBehindError(projection.name, position=position, token=token, stopped_by=stopped)
