"""The tasks of a schedule, and the gates where they wait until it is their turn."""

# ruff: noqa: ANN401 -- what drivers, and the functions of users, take and return

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, auto
from typing import Any, NoReturn, Protocol, TypeVar

from datapatterns.testing.interleaving.choosing import Fault, Gate
from datapatterns.testing.interleaving.servers import Backend
from datapatterns.testing.interleaving.story import Happening, described

T = TypeVar("T")

CURRENT: ContextVar["Task | None"] = ContextVar("the task that a schedule runs", default=None)
"""Set inside tasks only: set-up and invariants pass every gate."""


class TaskCrashed(BaseException):
    """The process of this task has died: no ``except Exception`` goes on after that."""


class State(Enum):
    """Where a task is."""

    RUNNING = auto()
    WAITING = auto()
    PARKED = auto()
    DONE = auto()
    FAILED = auto()
    CRASHED = auto()


MOVING = frozenset({State.RUNNING, State.WAITING})


class Link(Protocol):
    """A connection to a server that a task uses.

    Attributes:
        used_by: The task that used it last; what a pool hands on, changes hands.
    """

    used_by: "Task | None"

    def backend(self) -> Backend | None:
        """Return the session behind it, if it is one of PostgreSQL and still open."""
        ...

    def outlives(self, task: "Task") -> bool:
        """Return whether a pool may keep it when ``task`` has ended."""
        ...

    def hang_up(self) -> None:
        """Close it as a dead process would, and return when the server has noticed."""
        ...

    def interrupt(self) -> None:
        """Make whoever waits for an answer on it, in another thread, go on with an error."""
        ...

    def lost(self) -> Exception:
        """Return what the driver raises when the connection breaks."""
        ...


class Board:
    """What tasks and the scheduler tell each other."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.moves = 0

    def note(self) -> None:
        """Count a move; only with ``changed`` held."""
        self.moves += 1
        self.changed.notify_all()


class Task:
    """One of the functions that a schedule interleaves.

    Attributes:
        stage: Where its connections come from.
        in_flight: How many requests to PostgreSQL are under way, connecting included.
        pending: The connections of Redis whose answer is awaited.
        asked: How many requests there were.
        news: What the story has not told yet.
        dead: Its process has died: it passes no gate any more.
    """

    def __init__(
        self, name: str, function: Callable[[], Any], board: Board, *, stage: object
    ) -> None:
        self.name, self.function, self.stage = name, function, stage
        self._board = board
        self.state = State.RUNNING
        self.gate: Gate | None = None
        self.last_label = "its start"
        self.in_flight = self.asked = 0
        self.pending: dict[Link, None] = {}
        self.links: dict[Link, None] = {}
        self.result: Any = None
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None
        self.dead = False
        self.fault: Fault | None = None
        self.news: list[tuple[str, Happening]] = []
        self.waits, self.waits_since = "", 0.0
        self.cancel: Callable[[], object] = lambda: None
        self._fault: Fault | None = None
        self.refusal: RuntimeError | None = None
        self._told_error = ""
        self._release: Callable[[], object] = lambda: None

    @property
    def is_asking(self) -> bool:
        """Whether it has asked a server something and has no answer yet."""
        return self.in_flight > 0 or bool(self.pending)

    def asks(self) -> None:
        """Note that a request is under way; its end is ``in_flight -= 1``."""
        self.asked += 1
        self.in_flight += 1

    def open(self, fault: Fault | None) -> None:
        """Let it pass the gate where it is parked; only with ``changed`` held."""
        self._fault = fault
        self.state = State.RUNNING
        self.fault = fault or self.fault
        self.dead = self.dead or fault is Fault.CRASH
        self._release()

    def waits_for(self, whom: str) -> None:
        """Note that it cannot go on by itself; only with ``changed`` held."""
        if not self.waits:  # what it waits for may change while it waits: once is enough
            self.news.append((f"waits {whom}", Happening.WAIT))
            self.waits_since = time.monotonic()
        self.waits = whom
        self.state = State.WAITING

    def arrive(self, gate: Gate) -> Fault | None:
        """Park this thread at a gate; return the fault that the scheduler has chosen."""
        if self.dead:
            return Fault.CRASH
        if self.thread is None and _in_a_loop():
            raise RuntimeError(
                f"{self.name!r} is a coroutine, and {gate.label!r} would block its event loop and "
                "every other task in it; use async_engine() or async_redis()"
            )
        turn = threading.Event()
        self._park(gate, turn.set)
        turn.wait()
        return self._fate()

    async def arrive_async(self, gate: Gate) -> Fault | None:
        """Park this coroutine at a gate; return the fault that the scheduler has chosen."""
        if self.dead:
            return Fault.CRASH
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._park(gate, lambda: loop.call_soon_threadsafe(_resolve, turn))
        try:
            await turn
        except asyncio.CancelledError:
            with self._board.changed:
                self.state = State.RUNNING
                self._board.note()
            raise
        return self._fate()

    def _fate(self) -> Fault | None:
        return Fault.CRASH if self.dead else self._fault

    def _park(self, gate: Gate, release: Callable[[], object]) -> None:
        with self._board.changed:
            if self.state is State.PARKED or self.is_asking:
                self.refusal = RuntimeError(
                    f"{self.name!r} is at two gates at once, {self.last_label!r} and "
                    f"{gate.label!r}; give each concurrent branch a task of its own"
                )
                raise self.refusal
            self._goes_on()
            self.gate, self.last_label, self._release = gate, gate.label, release
            self.state = State.PARKED
            self._board.note()

    def fail(self, error: BaseException) -> None:
        """Note that a server has answered with an error."""
        with self._board.changed:
            self._goes_on()
            self._told_error = described(error)
            self.news.append((self._told_error, Happening.ERROR))

    def end(self, state: State, *, result: Any = None, error: BaseException | None = None) -> None:
        """Record how it ended."""
        with self._board.changed:
            self._goes_on()
            how = state.name.lower()
            if error is not None and described(error) != self._told_error:
                how = f"{how}: {described(error)}"
            self.news.append((how, Happening.END))
            self.state, self.result, self.error = state, result, error
            self._board.note()

    def _goes_on(self) -> None:
        if self.waits:
            self.news.append(("goes on", Happening.RESUME))
            self.waits = ""

    def uses(self, link: Link) -> None:
        """Note that a connection is this task's; a pool may have given it to another before."""
        if link.used_by is not self:
            if link.used_by is not None:
                link.used_by.links.pop(link, None)
            link.used_by = self
            self.links[link] = None

    def hang_up(self) -> None:
        """Close the connections that would not survive its end: all of them, if it has died."""
        self.asks()
        try:
            for link in list(self.links):
                if self.dead or not link.outlives(self):
                    link.hang_up()
        finally:
            self.in_flight -= 1

    def die(self, label: str) -> NoReturn:
        """Close its connections, before a pool can hand them on, and leave its code.

        Raises:
            TaskCrashed: Always.
        """
        self.dead = True
        self.hang_up()
        raise TaskCrashed(label)


def through(label: str, link: Link, operate: Callable[[], T], *, gated: bool = True) -> T:
    """Make a round trip when it is the task's turn; outside a task, at once."""
    task = CURRENT.get()
    if task is None:
        return operate()
    fault = task.arrive(Gate(task.name, label)) if gated else _crash_of(task)
    if fault is Fault.CRASH:
        task.die(label)
    task.uses(link)
    with _asking(task, link, fault):
        return operate()


async def through_async(
    label: str, link: Link, operate: Callable[[], Awaitable[T]], *, gated: bool = True
) -> T:
    """Make a round trip when it is the task's turn; outside a task, at once."""
    task = CURRENT.get()
    if task is None:
        return await operate()
    fault = await task.arrive_async(Gate(task.name, label)) if gated else _crash_of(task)
    if fault is Fault.CRASH:
        task.die(label)
    task.uses(link)
    with _asking(task, link, fault):
        return await operate()


def _crash_of(task: Task) -> Fault | None:
    return Fault.CRASH if task.dead else None


@contextmanager
def _asking(task: Task, link: Link, fault: Fault | None) -> Iterator[None]:
    task.asks()
    try:
        if fault is Fault.REQUEST_LOST:
            link.hang_up()
            raise link.lost()
        try:
            yield
        except Exception as error:
            task.fail(error)
            raise
        if fault is Fault.REPLY_LOST:
            link.hang_up()
            raise link.lost()
    finally:
        task.in_flight -= 1


@contextmanager
def in_flight() -> Iterator[None]:
    """Say that this task talks to a server, though at no gate: it opens a connection.

    Raises:
        TaskCrashed: Its process has died.
    """
    task = CURRENT.get()
    if task is None:
        yield
        return
    if task.dead:
        raise TaskCrashed("connecting")
    task.asks()
    try:
        yield
    finally:
        task.in_flight -= 1


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _resolve(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_result(None)
