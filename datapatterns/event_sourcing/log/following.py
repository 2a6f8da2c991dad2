"""Follow the log in a thread: what is there, and then what comes."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any

from sqlalchemy import Engine

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
class LogSignal(SignalState[Engine]):
    """Tells the followers of one process that the log goes on; give the same to all of them.

    However many they are, one of them looks and the others hear of it.

    Attributes:
        store: At whose log it looks.
        engine: Where; one connection is in use for a moment.
        published: Look at the published mark.
        clock: Tells how old a look is.
    """

    _looking: Lock = field(default_factory=Lock, init=False, repr=False)
    _changed: Condition = field(default_factory=Condition, init=False, repr=False)

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
            now = self.clock.monotonic()
            if not self._known.is_fresh(now, seconds_max):
                # By itself, so that a look is one statement and no BEGIN.
                with self.engine.connect() as conn:
                    conn.execution_options(isolation_level="AUTOCOMMIT")
                    sight = self._sight(conn)
                with self._changed:
                    self._known.look(*sight, now)
                    self._changed.notify_all()
            return self._known.drawn

    def pause(self, pause: Pause, *, wakes: int, is_stopped: Callable[[], bool]) -> Position | None:
        """Return what is drawn, if the pause ended before its time."""

        def is_over() -> bool:
            return is_stopped() or self._known.ends(pause, wakes=wakes)

        with self._changed:
            if isinstance(self.clock, SystemClock):
                return self._known.drawn if self._changed.wait_for(is_over, pause.seconds) else None
        if not is_over():
            self.clock.sleep(pause.seconds)  # a clock of tests: nobody has to wait
        return self._known.drawn if is_over() else None


@dataclass(slots=True)
class Follower(FollowerState[Engine, LogSignal]):
    """Reads the log page by page, and waits for more at its end; it writes nothing.

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
            OperationalError: No page could be read for too long: the connection was lost, or the
                server did not get to it.
            TimeoutError: SQLAlchemy's: for too long the engine's pool had no connection to spare.
        """
        flow = following(self.pace)
        answer: Any = None
        while not self.is_stopped:
            step = flow.send(answer)
            if isinstance(step, Deliver):
                answer = None
                yield step.page
            elif isinstance(step, Pause):
                answer = self._signal.pause(
                    step, wakes=self._wakes, is_stopped=lambda: self.is_stopped
                )
            else:
                answer = self._ask(step)

    def stop(self) -> None:
        """Let `pages` end, in whatever thread it runs, at once if it waits."""
        self.is_stopped = True
        self._signal.notify()

    def _ask(self, step: Begin | Read | Look) -> Position | LogPage | None:
        try:
            return self._answer(step)
        except UNANSWERED as error:
            if not self._can_go_on(error):
                raise
            return None

    def _answer(self, step: Begin | Read | Look) -> Position | LogPage | None:
        if isinstance(step, Look):
            return self._looked(self._signal.look(step.seconds_max))
        self._wakes = self._signal.wakes  # before reading: a wake that comes meanwhile counts
        with self.engine.connect() as conn:
            conn.execution_options(isolation_level="READ COMMITTED")
            return self._answer_on(conn, step)
