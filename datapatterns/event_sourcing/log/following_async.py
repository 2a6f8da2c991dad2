"""Follow the log in a task: as `Follower` does in a thread."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from datapatterns.clock import SYSTEM_CLOCK, Clock, SystemClock
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.log.filtering import EVERYTHING, LogFilter
from datapatterns.event_sourcing.log.following import Start, begin_at, is_lost
from datapatterns.event_sourcing.log.following_flow import (
    Begin,
    Deliver,
    Known,
    Look,
    Pace,
    Pause,
    Read,
    Step,
    following,
)
from datapatterns.event_sourcing.log.high_water import read_hint
from datapatterns.event_sourcing.log.same_server import SameServer
from datapatterns.event_sourcing.recorded import LogPage
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import reading

logger = logging.getLogger(__name__)


class AsyncLogSignal:
    """Tells the followers of one event loop that the log goes on; give the same to all of them."""

    def __init__(
        self,
        store: EventStore,
        engine: AsyncEngine,
        *,
        published: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Look at the log of ``store``; with ``published``, at its published mark."""
        self._store = store
        self._engine = engine
        self._published = published
        self._clock = clock
        self._looking = asyncio.Lock()
        self._changed: set[asyncio.Event] = set()
        self._known = Known()

    @property
    def wakes(self) -> int:
        """How often somebody was woken; remember it before reading."""
        return self._known.wakes

    def wake(self) -> None:
        """Let all followers read now: call it after a COMMIT of this process that appended."""
        self._known.wakes += 1
        self.notify()

    def notify(self) -> None:
        """Let all followers see whether they were stopped."""
        for changed in self._changed:
            changed.set()

    def forget(self) -> None:
        """Know nothing any more: the connection was lost, maybe in a crash."""
        self._known.forget()

    async def look(self, seconds_max: float) -> Position:
        """Return the last position drawn, as it was at most ``seconds_max`` ago."""
        async with self._looking:
            now = self._clock.monotonic()
            if not self._known.is_fresh(now, seconds_max):
                async with self._engine.connect() as pooled:
                    conn = await pooled.execution_options(isolation_level="AUTOCOMMIT")
                    drawn = await conn.run_sync(
                        read_hint, schema=self._store.schema, published=self._published
                    )
                self._known.look(drawn, now)
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
            if isinstance(self._clock, SystemClock):
                async with asyncio.timeout(pause.seconds):
                    while not is_over():
                        changed.clear()
                        await changed.wait()
            else:
                await asyncio.sleep(0)
                if not is_over():
                    self._clock.sleep(pause.seconds)  # a clock of tests: nobody has to wait
        except TimeoutError:
            pass
        finally:
            self._changed.discard(changed)
        return self._known.drawn if is_over() else None


@dataclass(slots=True)
class AsyncFollower:
    """What `Follower` is, on an async engine and in one event loop."""

    store: EventStore
    engine: AsyncEngine
    after: Start = START
    limit: int = field(default=500, kw_only=True)
    matching: LogFilter = field(default=EVERYTHING, kw_only=True)
    published: bool = field(default=False, kw_only=True)
    pace: Pace = field(default_factory=Pace, kw_only=True)
    signal: AsyncLogSignal | None = field(default=None, kw_only=True)
    clock: Clock = field(default=SYSTEM_CLOCK, kw_only=True, repr=False)
    is_stopped: bool = field(default=False, init=False)
    _signal: AsyncLogSignal = field(init=False, repr=False)
    _wakes: int = field(default=0, init=False, repr=False)
    _lost_at: float | None = field(default=None, init=False, repr=False)
    _server: SameServer = field(default_factory=SameServer, init=False, repr=False)

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

    async def _ask(self, step: Step) -> Position | LogPage | None:
        try:
            answer = await self._answer(step)
        except DBAPIError as error:
            if not is_lost(error) or self._has_given_up():
                raise
            logger.warning("follower of the log has lost its connection", exc_info=True)
            self._signal.forget()
            return None
        self._lost_at = None
        return answer

    async def _answer(self, step: Step) -> Position | LogPage | None:
        if isinstance(step, Look):
            return await self._signal.look(step.seconds_max)
        self._wakes = self._signal.wakes  # before reading: a wake that comes meanwhile counts
        async with self.engine.connect() as pooled:
            conn = await pooled.execution_options(isolation_level="READ COMMITTED")
            return await conn.run_sync(self._read, step)

    def _read(self, conn: Connection, step: Step) -> Position | LogPage | None:
        with reading(conn):
            if isinstance(step, Begin):
                self._server.forget()
                self._server.answers(conn)
                return begin_at(conn, self.after, step.seen)
            assert isinstance(step, Read)
            if not self._server.answers(conn):  # the pool has hidden it
                self._signal.forget()
                return None
            return self.store.read_log(
                conn,
                step.after,
                limit=self.limit,
                matching=self.matching,
                published=self.published,
            )

    def _has_given_up(self) -> bool:
        now = self.clock.monotonic()
        if self._lost_at is None:
            self._lost_at = now
        return now - self._lost_at > self.pace.lost_seconds_max
