"""Wait until a view contains a write."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine

from datapatterns.change_log import ChangeLog, ChangeToken
from datapatterns.change_log.waiting import growing_pauses
from datapatterns.clock import Clock
from datapatterns.errors import ConsumerMissingError, ViewBehindError, ViewMissingError
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.stacking import read_as_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


@dataclass(frozen=True, slots=True)
class Awaited:
    """A write, and the view that is to contain it.

    Attributes:
        view: The view.
        token: From `change_token`.
        timeout_seconds: How long to wait at most.
        clock: What the time-out goes by.
    """

    view: ViewDefinition
    token: ChangeToken
    timeout_seconds: float
    clock: Clock

    def has_come(self, conn: Connection) -> bool:
        """Return whether the view contains the write.

        Raises:
            ValueError: The token comes from another cluster.
            ViewMissingError: The view was not created.
        """
        names = self.view.names
        try:
            if not ChangeLog(names.schema).has_consumed(conn, names.consumer, self.token):
                return False
        except ConsumerMissingError as error:
            raise ViewMissingError(names.view) from error
        # Nor does it if something that it is built upon did not.
        found = read_as_of(conn, names)
        return found is not None and found.snapshot.shows(self.token.xid)

    def pauses(self) -> Iterator[float]:
        """Return how long to pause, each time longer, until the time is over.

        The first one is none: whatever was done to help may have been enough.

        Raises:
            ViewBehindError: The time is over.
        """
        deadline = self.clock.monotonic() + self.timeout_seconds
        if self.timeout_seconds > 0:
            yield 0.0
        yield from growing_pauses(self.clock, deadline - self.clock.monotonic())
        raise ViewBehindError(self.view.names.view, timeout_seconds=self.timeout_seconds)


def wait_for(
    engine: Engine, awaited: Awaited, *, help_along: Callable[[], object] = lambda: None
) -> None:
    """Return as soon as the view contains the write; no connection is held meanwhile.

    Args:
        engine: Where the view is.
        awaited: What is waited for.
        help_along: Called before each pause; it may refresh the view.

    Raises:
        ValueError: The token comes from another cluster.
        ViewBehindError: It does not in time.
        ViewMissingError: The view was not created.
    """
    pauses = awaited.pauses()
    while not _look(engine, awaited):
        pause = next(pauses)
        help_along()
        awaited.clock.sleep(pause)


async def wait_for_async(
    engine: "AsyncEngine",
    awaited: Awaited,
    *,
    help_along: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Do as `wait_for` does, in a task; the event loop's own time passes."""
    pauses = awaited.pauses()
    while not await _look_async(engine, awaited):
        pause = next(pauses)
        if help_along is not None:
            await help_along()
        await asyncio.sleep(pause)


def _look(engine: Engine, awaited: Awaited) -> bool:
    with engine.connect() as conn:
        return awaited.has_come(conn)


async def _look_async(engine: "AsyncEngine", awaited: Awaited) -> bool:
    async with engine.connect() as conn:
        return await conn.run_sync(awaited.has_come)
