"""Follow the log in a task: as `Follower` does in a thread."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from datapatterns.clock import SystemClock
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.log.follower_state import FollowerState, SignalState
from datapatterns.event_sourcing.log.following_flow import (
    Begin,
    Deliver,
    Look,
    Pause,
    Read,
    following,
)
from datapatterns.event_sourcing.log.losses import UNANSWERED
from datapatterns.event_sourcing.recorded import LogPage


@dataclass(slots=True, eq=False)
class AsyncLogSignal(SignalState[AsyncEngine]):
    """Tells the followers of one event loop that the log goes on; give the same to all of them.

    Attributes:
        store: At whose log it looks.
        engine: Where; one connection is in use for a moment.
        published: Look at the published mark.
        clock: Tells how old a look is.
    """

    _looking: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)
    _changed: set[asyncio.Event] = field(default_factory=set, init=False, repr=False)

    def wake(self) -> None:
        """Let all followers read now: call it after a COMMIT of this process that appended."""
        self._known.wakes += 1
        self.notify()

    def notify(self) -> None:
        """Let all followers see whether they were stopped."""
        for changed in self._changed:
            changed.set()

    async def look(self, seconds_max: float) -> Position:
        """Return the last position drawn, as it was at most ``seconds_max`` ago."""
        async with self._looking:
            now = self.clock.monotonic()
            if not self._known.is_fresh(now, seconds_max):
                async with self.engine.connect() as pooled:
                    conn = await pooled.execution_options(isolation_level="AUTOCOMMIT")
                    sight = await conn.run_sync(self._sight)
                self._known.look(*sight, now)
                self.notify()
            return self._known.drawn

    async def pause(
        self, pause: Pause, *, wakes: int, follower: "AsyncFollower"
    ) -> Position | None:
        """Return what is drawn, if the pause ended before its time."""

        def is_over() -> bool:
            return follower.is_stopped or self._known.ends(pause, wakes=wakes)

        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            if isinstance(self.clock, SystemClock):
                async with asyncio.timeout(pause.seconds):
                    while not is_over():
                        changed.clear()
                        await changed.wait()
            else:
                await asyncio.sleep(0)
                if not is_over():
                    self.clock.sleep(pause.seconds)  # a clock of tests: nobody has to wait
        except TimeoutError:
            pass
        finally:
            self._changed.discard(changed)
        return self._known.drawn if is_over() else None


@dataclass(slots=True)
class AsyncFollower(FollowerState[AsyncEngine, AsyncLogSignal]):
    """What `Follower` is, on an async engine and in one event loop."""

    def __post_init__(self) -> None:
        self._signal = self.signal or AsyncLogSignal(
            self.store, self.engine, published=self.published, clock=self.clock
        )

    async def pages(self) -> AsyncGenerator[LogPage, None]:
        """Yield pages as `Follower.pages` does; a cancelled task ends it, too."""
        flow = following(self.pace)
        answer: Any = None
        while not self.is_stopped:
            step = flow.send(answer)
            if isinstance(step, Deliver):
                answer = None
                yield step.page
            elif isinstance(step, Pause):
                answer = await self._signal.pause(step, wakes=self._wakes, follower=self)
            else:
                answer = await self._ask(step)

    def stop(self) -> None:
        """Let `pages` end, at once if it waits."""
        self.is_stopped = True
        self._signal.notify()

    async def _ask(self, step: Begin | Read | Look) -> Position | LogPage | None:
        try:
            return await self._answer(step)
        except UNANSWERED as error:
            if not self._can_go_on(error):
                raise
            return None

    async def _answer(self, step: Begin | Read | Look) -> Position | LogPage | None:
        if isinstance(step, Look):
            return self._looked(await self._signal.look(step.seconds_max))
        self._wakes = self._signal.wakes  # before reading: a wake that comes meanwhile counts
        async with self.engine.connect() as pooled:
            conn = await pooled.execution_options(isolation_level="READ COMMITTED")
            return await conn.run_sync(self._answer_on, step)
