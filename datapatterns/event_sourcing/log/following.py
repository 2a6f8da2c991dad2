"""Follow the log in a thread: what is there, and then what comes."""

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from datapatterns.clock import SYSTEM_CLOCK, Clock, SystemClock
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.log.filtering import EVERYTHING, LogFilter
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

Start = Position | Callable[[Connection], Position]
"""Where to begin: a position, or what reads it from where it is kept."""


class LogSignal:
    """Tells the followers of one process that the log goes on; give the same to all of them.

    However many they are, one of them looks and the others hear of it.
    """

    def __init__(
        self,
        store: EventStore,
        engine: Engine,
        *,
        published: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Look at the log of ``store``; with ``published``, at its published mark."""
        self._store = store
        self._engine = engine
        self._published = published
        self._clock = clock
        self._looking = Lock()
        self._changed = Condition()
        self._known = Known()

    @property
    def wakes(self) -> int:
        """How often somebody was woken; remember it before reading."""
        return self._known.wakes

    def wake(self) -> None:
        """Let all followers read now: call it after a COMMIT of this process that appended."""
        with self._changed:
            self._known.wakes += 1
            self._changed.notify_all()

    def notify(self) -> None:
        """Let all followers see whether they were stopped."""
        with self._changed:
            self._changed.notify_all()

    def forget(self) -> None:
        """Know nothing any more: the connection was lost, maybe in a crash."""
        with self._changed:
            self._known.forget()

    def look(self, seconds_max: float) -> Position:
        """Return the last position drawn, as it was at most ``seconds_max`` ago."""
        with self._looking:
            now = self._clock.monotonic()
            if not self._known.is_fresh(now, seconds_max):
                # By itself, so that a look is one statement and no BEGIN.
                with self._engine.connect() as conn:
                    conn.execution_options(isolation_level="AUTOCOMMIT")
                    drawn = read_hint(conn, schema=self._store.schema, published=self._published)
                with self._changed:
                    self._known.look(drawn, now)
                    self._changed.notify_all()
            return self._known.drawn

    def pause(self, pause: Pause, *, wakes: int, is_stopped: Callable[[], bool]) -> Position | None:
        """Return what is drawn, if the pause ended before its time."""

        def is_over() -> bool:
            return is_stopped() or self._known.ends(pause, wakes=wakes)

        with self._changed:
            if isinstance(self._clock, SystemClock):
                return self._known.drawn if self._changed.wait_for(is_over, pause.seconds) else None
        if not is_over():
            self._clock.sleep(pause.seconds)  # a clock of tests: nobody has to wait
        return self._known.drawn if is_over() else None


@dataclass(slots=True)
class Follower:
    """Reads the log page by page, and waits for more at its end; it never commits.

    Attributes:
        store: Whose log.
        engine: Where. One connection is in use while a page is read, none while waiting.
        after: Where to begin. Give a function that reads the checkpoint from where it is kept,
            rather than the position: it is called again when a lost connection is back.
        limit: The most events of a page.
        matching: Which events.
        published: Read up to the published mark, also on a standby.
        pace: How long to pause.
        signal: Shared by the followers of a process; each has its own otherwise.
        clock: Measures the pauses.
    """

    store: EventStore
    engine: Engine
    after: Start = START
    limit: int = field(default=500, kw_only=True)
    matching: LogFilter = field(default=EVERYTHING, kw_only=True)
    published: bool = field(default=False, kw_only=True)
    pace: Pace = field(default_factory=Pace, kw_only=True)
    signal: LogSignal | None = field(default=None, kw_only=True)
    clock: Clock = field(default=SYSTEM_CLOCK, kw_only=True, repr=False)
    _signal: LogSignal = field(init=False, repr=False)
    _is_stopped: bool = field(default=False, init=False, repr=False)
    _wakes: int = field(default=0, init=False, repr=False)
    _lost_at: float | None = field(default=None, init=False, repr=False)
    _server: SameServer = field(default_factory=SameServer, init=False, repr=False)

    def __post_init__(self) -> None:
        self._signal = self.signal or LogSignal(
            self.store, self.engine, published=self.published, clock=self.clock
        )

    def pages(self) -> Generator[LogPage, None, None]:
        """Yield pages until `stop` is called; the last one before a pause is ``caught_up``.

        A page without events says that the checkpoint moved over some that do not match. Keep its
        ``checkpoint`` in the transaction that does something with its events.

        If the connection is lost, it begins anew: with what ``after`` returns, or, where that is a
        position, after the last event that it has yielded.

        Raises:
            CheckpointError: The checkpoint lies beyond the log.
            OperationalError: The connection has been lost for too long.
        """
        flow = following(self.pace)
        answer: Any = None
        while not self._is_stopped:
            step = flow.send(answer)
            if isinstance(step, Deliver):
                answer = None
                yield step.page
            elif isinstance(step, Pause):
                answer = self._signal.pause(
                    step, wakes=self._wakes, is_stopped=lambda: self._is_stopped
                )
            else:
                answer = self._ask(step)

    def stop(self) -> None:
        """Let `pages` end, in whatever thread it runs, at once if it waits."""
        self._is_stopped = True
        self._signal.notify()

    def _ask(self, step: Step) -> Position | LogPage | None:
        try:
            answer = self._answer(step)
        except DBAPIError as error:
            if not is_lost(error) or self._has_given_up():
                raise
            logger.warning("follower of the log has lost its connection", exc_info=True)
            self._signal.forget()
            return None
        self._lost_at = None
        return answer

    def _answer(self, step: Step) -> Position | LogPage | None:
        if isinstance(step, Look):
            return self._signal.look(step.seconds_max)
        self._wakes = self._signal.wakes  # before reading: a wake that comes meanwhile counts
        with self.engine.connect() as conn:
            conn.execution_options(isolation_level="READ COMMITTED")
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


def begin_at(conn: Connection, after: Start, seen: Position | None) -> Position:
    """Return where to begin, or to begin again after the last event ``seen``."""
    if callable(after):
        return after(conn)
    return after if seen is None else max(after, seen)


def is_lost(error: DBAPIError) -> bool:
    """Return whether trying again later can help."""
    return error.connection_invalidated or isinstance(error, OperationalError)
