"""A worker: threads that move projections on, and one that keeps leases and looks at the log."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from threading import Event, Lock, Thread, current_thread
from typing import Final

from sqlalchemy import Connection, Engine, Pool, QueuePool
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.cqrs import ProjectionWorker
from datapatterns.errors import CommitUnansweredError, ReadOnlyServerError, UnavailableError
from datapatterns.runtime.loops import CancellableLoop, Loop
from datapatterns.transactions import fresh_reads

logger = logging.getLogger(__name__)

LOOK_SECONDS_MIN: Final = 0.002
LOOK_SECONDS_MAX: Final = 0.05
LOOK_GROWTH: Final = 1.125
"""So often it is looked whether the log moves, and whether to stop.

A pause is an eighth of the time for which nothing has come: that much later, at most, is seen what
comes as regularly as before. A look costs as much as an empty statement.
"""

CONNECTIONS_MIN: Final = 2
"""One is kept for the leases, so with no other nothing would ever be moved on."""

LOST_SECONDS_MIN: Final = 0.1
LOST_SECONDS_MAX: Final = 5.0
"""How long to pause while the database does not answer."""

CANCEL_SECONDS: Final = 2.0
"""How long to wait for a statement that is cancelled, once the time to finish is over."""


@dataclass(frozen=True, slots=True)
class WorkerTotals:
    """What a worker has done.

    Attributes:
        events: How many events met a handler.
        pages: How many times a segment was looked at.
    """

    events: int
    pages: int


class _Counter:
    def __init__(self) -> None:
        self._lock = Lock()
        self._events = self._pages = 0

    def add(self, events: int) -> None:
        with self._lock:
            self._events += events
            self._pages += 1

    def totals(self) -> WorkerTotals:
        with self._lock:
            return WorkerTotals(self._events, self._pages)


@dataclass(slots=True, eq=False)
class Worker:
    """Moves projections on, and does what else is asked for, until it is stopped.

    A thread applies one page after another, of whichever segment has waited for longest. So a
    projection whose pages are slow holds up others only if as many of them as there are threads
    are under way. Threads share one processor while they fold; those whose pages wait for the
    database don't need it. For more, start more processes.

    The engine's pool should have a connection for each thread, one for leases, and one for each
    loop; with fewer they wait for each other.

    Attributes:
        engine: Where the events, the read models and the leases are.
        projections: What `Projections.worker` returned.
        loops: What to do besides, each in a thread of its own.
        threads: How many pages may be under way at the same time.
        grace_seconds: How long pages that are under way have to finish when it is stopped; then
            they are undone.
        on_look: Called many times a second with what was done so far, in the thread of `run`.

    Raises:
        ValueError: There are no threads, or the time to finish is negative, or the pool has one
            connection, which the leases need.
    """

    engine: Engine
    projections: ProjectionWorker
    loops: Sequence[Loop] = ()
    threads: int = field(default=2, kw_only=True)
    grace_seconds: float = field(default=10.0, kw_only=True)
    on_look: Callable[[WorkerTotals], None] = field(default=lambda _: None, kw_only=True)
    _stopping: bool = field(default=False, init=False, repr=False)
    _ended: Event = field(default_factory=Event, init=False, repr=False)
    _over: Event = field(default_factory=Event, init=False, repr=False)
    _counter: _Counter = field(default_factory=_Counter, init=False, repr=False)
    _at_work: dict[Thread, Connection] = field(default_factory=dict, init=False, repr=False)
    _failure: Exception | None = field(default=None, init=False, repr=False)
    _has_looked: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"{self.threads} threads move nothing on; allow at least 1")
        if self.grace_seconds < 0:
            raise ValueError(f"{self.grace_seconds} s are no time to finish pages in")
        if _connections_max(self.engine.pool) < CONNECTIONS_MIN:
            raise ValueError(
                "the engine's pool has one connection, which is needed for leases; give it one for"
                " each thread and each loop besides: create_engine(..., pool_size=...)"
            )

    def run(self, *, until: Callable[[Connection], bool] = lambda _: False) -> WorkerTotals:
        """Work until `stop` is called, and return what was done. Call it once.

        A database that does not answer is waited for, and so is one that only allows reading since
        a failover.

        Args:
            until: Asked again and again, with a connection; True ends it, too.

        Raises:
            DBAPIError: The database refuses what the worker itself needs, such as its tables.
            ReadOnlyServerError: It only allows reading, and did so from the first.
        """
        threads = [
            Thread(target=self._move_on, name=f"projections-{n}", daemon=True)
            for n in range(self.threads)
        ]
        threads += [
            Thread(target=self._repeat, args=(loop,), name=loop.name, daemon=True)
            for loop in self.loops
        ]
        known = {"worker": self.projections.terms.owner, "threads": self.threads}
        logger.info("worker begins", extra=known)
        for thread in threads:
            thread.start()
        try:
            self._keep(until)
        finally:
            self._end(threads)
        done = self._counter.totals()
        logger.info("worker ends", extra={"events": done.events, "pages": done.pages})
        if self._failure is not None:
            raise self._failure
        return done

    def stop(self) -> None:
        """Let `run` end soon, in whatever thread it is; return at once. Signals may call it."""
        self._stopping = True  # no lock: a signal handler may have interrupted who holds it

    def _keep(self, until: Callable[[Connection], bool]) -> None:
        outage = _Outage("leases cannot be kept")
        while not self._stopping:
            try:
                with fresh_reads(self.engine) as conn:
                    self._keep_on(conn, until, outage)
            except Exception as error:
                if not self._may_pass(error):
                    raise
                self._pause(outage.begin(error))

    def _keep_on(
        self, conn: Connection, until: Callable[[Connection], bool], outage: "_Outage"
    ) -> None:
        pause = LOOK_SECONDS_MIN
        while not self._stopping:
            self.projections.beat(conn)
            moved = self.projections.look(conn)
            self._has_looked = True
            outage.end()
            self.on_look(self._counter.totals())
            if until(conn):
                self.stop()
                return
            pause = LOOK_SECONDS_MIN if moved else min(LOOK_GROWTH * pause, LOOK_SECONDS_MAX)
            self._ended.wait(pause)

    def _move_on(self) -> None:
        outage = _Outage("projections cannot be moved on")
        while not self._ended.is_set():
            try:
                with fresh_reads(self.engine) as conn:
                    try:
                        self._take_turns(conn)
                    finally:
                        if self._over.is_set():
                            # Nobody waits for this thread any more, and the pool may be gone: what
                            # is given back to it then would never be closed.
                            conn.invalidate()
            except Exception as error:  # noqa: BLE001 -- told by run
                if not self._may_pass(error):
                    self._fail(error)
                    return
                self._ended.wait(outage.begin(error))
            else:
                outage.end()
                self.projections.wait(LOOK_SECONDS_MAX if self._stopping else 1.0)

    def _take_turns(self, conn: Connection) -> None:
        thread = current_thread()
        self._at_work[thread] = conn
        try:
            while not self._ended.is_set():
                events = self.projections.turn(conn)
                if events is None:
                    return
                self._counter.add(events)
        finally:
            del self._at_work[thread]

    def _repeat(self, loop: Loop) -> None:
        outage = _Outage(f"{loop.name} fails")
        while not self._ended.is_set():
            try:
                pause = loop.step()
            except Exception as error:  # noqa: BLE001 -- one loop must not stop the others
                pause = outage.begin(error)
            else:
                outage.end()
            self._ended.wait(pause)

    def _may_pass(self, error: Exception) -> bool:
        # What could be written to before is the primary no more, and another one will be.
        return _is_lost(error) or (self._has_looked and isinstance(error, ReadOnlyServerError))

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self.stop()

    def _end(self, threads: Sequence[Thread]) -> None:
        self._ended.set()
        self.projections.interrupt()
        # At once, so that others need not wait for pages that are under way here.
        self._tell_database(self.projections.let_go)
        deadline = SYSTEM_CLOCK.monotonic() + self.grace_seconds
        for thread in threads:
            thread.join(max(0.0, deadline - SYSTEM_CLOCK.monotonic()))
        late = [thread for thread in threads if thread.is_alive()]
        if late:
            logger.warning(
                "pages that were not finished in time are undone", extra={"pages": len(late)}
            )
        self._tell_database(self.projections.leave)
        for thread in late:
            self._cancel(thread)
        for loop in self.loops:
            if isinstance(loop, CancellableLoop) and late:
                loop.interrupt()
        for thread in late:
            thread.join(CANCEL_SECONDS)
        self._over.set()

    def _tell_database(self, tell: Callable[[Connection], None]) -> None:
        try:
            with fresh_reads(self.engine) as conn:
                tell(conn)
        except (DBAPIError, CommitUnansweredError, PoolTimeoutError, ReadOnlyServerError) as error:
            logger.warning("leases are not given back, and lapse", exc_info=error)

    def _cancel(self, thread: Thread) -> None:
        conn = self._at_work.get(thread)
        if conn is not None and not conn.closed and not conn.invalidated:
            driver = conn.connection.driver_connection
            try:
                driver.cancel()  # type: ignore[union-attr] # psycopg's
            except Exception as error:
                logger.debug("a statement was not cancelled", exc_info=error)

    def _pause(self, seconds: float) -> None:
        deadline = SYSTEM_CLOCK.monotonic() + seconds
        while not self._stopping and SYSTEM_CLOCK.monotonic() < deadline:
            self._ended.wait(LOOK_SECONDS_MAX)


def _connections_max(pool: Pool) -> float:
    if not isinstance(pool, QueuePool) or pool.size() == 0:
        return inf
    overflow_max = pool._max_overflow  # noqa: SLF001 -- nothing else tells it
    return inf if overflow_max < 0 else pool.size() + overflow_max


class _Outage:
    """Says how long to pause while something fails, the longer the longer it does."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._seconds = 0.0

    def begin(self, error: Exception) -> float:
        self._seconds = min(max(2 * self._seconds, LOST_SECONDS_MIN), LOST_SECONDS_MAX)
        reason = next(iter(str(error).splitlines()), "")
        known = {"reason": f"{type(error).__name__}: {reason}", "pause_seconds": self._seconds}
        logger.warning("%s", self._what, extra=known)
        return self._seconds

    def end(self) -> None:
        if self._seconds:
            logger.info("the database answers again")
        self._seconds = 0.0


def _is_lost(error: Exception) -> bool:
    lost = CommitUnansweredError | UnavailableError | PoolTimeoutError
    if isinstance(error, lost | OperationalError | InterfaceError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated
