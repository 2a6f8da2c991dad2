"""The loop that publishes the high-water mark, in a task: as `MarkPublisher` does in a thread."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncEngine

from datapatterns.clock import SystemClock
from datapatterns.event_sourcing.log.losses import UNANSWERED
from datapatterns.event_sourcing.log.mark_publisher import PublisherState


@dataclass(slots=True)
class AsyncMarkPublisher(PublisherState[AsyncEngine]):
    """What `MarkPublisher` is, on an async engine and in one event loop."""

    _stopped: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)

    async def run(self) -> None:
        """Publish as `MarkPublisher.run` does; a cancelled task ends it, too."""
        while not self._stopped.is_set():
            try:
                async with self.engine.connect() as pooled:
                    conn = await pooled.execution_options(isolation_level="READ COMMITTED")
                    await conn.run_sync(self._publish_on)
            except UNANSWERED as error:
                if not self._can_go_on(error):
                    raise
            await self._pause()

    def stop(self) -> None:
        """Let `run` end, at once if it pauses."""
        self._stopped.set()

    async def _pause(self) -> None:
        if isinstance(self.clock, SystemClock):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), self.seconds)
        elif not self._stopped.is_set():
            self.clock.sleep(self.seconds)  # a clock of tests: nobody has to wait
            await asyncio.sleep(0)
