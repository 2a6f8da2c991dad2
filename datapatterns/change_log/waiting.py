"""Wait until a consumer has consumed a write, whatever it makes of it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine

from datapatterns.change_log.tokens import ChangeToken, has_consumed
from datapatterns.clock import Clock
from datapatterns.errors import ConsumerBehindError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_FIRST_PAUSE_SECONDS = 0.005
_PAUSE_SECONDS_MAX = 0.25


@dataclass(frozen=True, slots=True)
class AwaitedChange:
    """A write, and who is to consume it.

    Attributes:
        schema: Where the library's tables live.
        consumer: The consumer's name.
        token: From `change_token`.
        timeout_seconds: How long to wait at most.
        clock: What the time-out goes by.
    """

    schema: str
    consumer: str
    token: ChangeToken
    timeout_seconds: float
    clock: Clock

    def is_consumed(self, conn: Connection) -> bool:
        """Return whether the consumer has consumed the write."""
        return has_consumed(conn, self.consumer, self.token, schema=self.schema)

    def pauses(self) -> Iterator[float]:
        """Return how long to pause, each time longer, until the time is over.

        Raises:
            ConsumerBehindError: The time is over.
        """
        yield from growing_pauses(self.clock, self.timeout_seconds)
        raise ConsumerBehindError(self.consumer, timeout_seconds=self.timeout_seconds)


def growing_pauses(clock: Clock, timeout_seconds: float) -> Iterator[float]:
    """Return how long to pause between looks, each time longer, as long as there is time.

    The last one is cut, so that somebody looks once more when the time is over.
    """
    deadline, pause = clock.monotonic() + timeout_seconds, _FIRST_PAUSE_SECONDS
    while (left := deadline - clock.monotonic()) > 0:
        yield min(pause, left)
        pause = min(2 * pause, _PAUSE_SECONDS_MAX)


def wait_for(engine: Engine, awaited: AwaitedChange) -> None:
    """Return as soon as the consumer has consumed the write; no connection is held meanwhile.

    Right on a standby, too: there it waits until the standby has replayed that.

    Raises:
        ConsumerBehindError: It does not in time.
        ConsumerMissingError: Nobody has registered its name.
        ForeignSnapshotError: The consumer was last advanced in another database.
        ValueError: The token comes from another cluster.
    """
    pauses = awaited.pauses()
    while not _look(engine, awaited):
        awaited.clock.sleep(next(pauses))


async def wait_for_async(engine: "AsyncEngine", awaited: AwaitedChange) -> None:
    """Do as `wait_for` does, in a task; the event loop's own time passes."""
    pauses = awaited.pauses()
    while not await _look_async(engine, awaited):
        pause = next(pauses)
        await asyncio.sleep(pause)


def _look(engine: Engine, awaited: AwaitedChange) -> bool:
    with engine.connect() as conn:
        return awaited.is_consumed(conn)


async def _look_async(engine: "AsyncEngine", awaited: AwaitedChange) -> bool:
    async with engine.connect() as conn:
        return await conn.run_sync(awaited.is_consumed)
