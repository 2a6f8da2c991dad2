"""Wait until an index contains a write."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine

from datapatterns.change_log import ChangeToken
from datapatterns.change_log.waiting import growing_pauses
from datapatterns.clock import Clock
from datapatterns.errors import IndexBehindError
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.lagging import contains
from datapatterns.index_table.states import require_ready
from datapatterns.transactions import looking

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


@dataclass(frozen=True, slots=True)
class AwaitedRow:
    """A write, and the index that is to contain it.

    Attributes:
        index: The index.
        token: From `change_token`.
        timeout_seconds: How long to wait at most.
        clock: What the time-out goes by.
    """

    index: IndexDefinition
    token: ChangeToken
    timeout_seconds: float
    clock: Clock

    def has_come(self, conn: Connection) -> bool:
        """Return whether the index contains the write.

        Raises:
            IndexNotReadyError: It isn't read yet, so nothing can be read from it.
        """
        require_ready(conn, self.index)
        # Of one that writers keep themselves, the token's transaction has done so.
        return self.index.mode != "async" or contains(conn, self.index, self.token)

    def pauses(self) -> Iterator[float]:
        """Return how long to pause, each time longer, until the time is over.

        Raises:
            IndexBehindError: The time is over.
        """
        yield from growing_pauses(self.clock, self.timeout_seconds)
        raise IndexBehindError(self.index.name, timeout_seconds=self.timeout_seconds)


def wait_for(engine: Engine, awaited: AwaitedRow) -> None:
    """Return as soon as the index contains the write; no connection is held meanwhile."""
    pauses = awaited.pauses()
    while not _look(engine, awaited):
        awaited.clock.sleep(next(pauses))


async def wait_for_async(engine: "AsyncEngine", awaited: AwaitedRow) -> None:
    """Do as `wait_for` does, in a task; the event loop's own time passes."""
    pauses = awaited.pauses()
    while not await _look_async(engine, awaited):
        pause = next(pauses)
        await asyncio.sleep(pause)


def _look(engine: Engine, awaited: AwaitedRow) -> bool:
    with engine.connect() as conn, looking(conn):
        return awaited.has_come(conn)


async def _look_async(engine: "AsyncEngine", awaited: AwaitedRow) -> bool:
    async with engine.connect() as conn:
        return await conn.run_sync(awaited.has_come)
