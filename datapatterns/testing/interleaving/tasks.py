"""The tasks of a schedule, and the gates where they wait until it is their turn."""

# ruff: noqa: ANN401 -- what drivers, and the functions of users, take and return

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, auto
from typing import Any, Protocol, TypeVar

from datapatterns.testing.interleaving.choosing import Fault, Gate
from datapatterns.testing.interleaving.servers import Backend

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

    def in_transaction(self) -> bool:
        """Return whether it would keep locks if nobody used it any more."""
        ...

    def hang_up(self) -> None:
        """Close it as a dead process would, and return when the server has noticed."""
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
    """One of the functions that a schedule interleaves."""

    def __init__(self, name: str, function: Callable[[], Any], board: Board) -> None:
        self.name, self.function = name, function
        self._board = board
        self.state = State.RUNNING
        self.gate: Gate | None = None
        self.last_label = "its start"
        self.in_flight = 0
        self.links: dict[Link, None] = {}
        self.result: Any = None
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None
        self.dead = False
        self.fault: Fault | None = None
        self.cancel: Callable[[], object] = lambda: None
        self._fault: Fault | None = None
        self._release: Callable[[], object] = lambda: None

    def open(self, fault: Fault | None) -> None:
        """Let it pass the gate where it is parked; only with ``changed`` held."""
        self._fault = fault
        self.state = State.RUNNING
        self.fault = fault or self.fault
        self.dead = self.dead or fault is Fault.CRASH
        self._release()

    def arrive(self, gate: Gate) -> Fault | None:
        """Park this thread at a gate; return the fault that the scheduler has chosen."""
        if self.dead:
            return Fault.CRASH
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
            raise
        return self._fate()

    def _fate(self) -> Fault | None:
        return Fault.CRASH if self.dead else self._fault

    def _park(self, gate: Gate, release: Callable[[], object]) -> None:
        with self._board.changed:
            if self.state is State.PARKED:
                raise RuntimeError(
                    f"{self.name!r} is at two gates at once: {self.last_label!r} and "
                    f"{gate.label!r}; give each concurrent branch a task of its own"
                )
            self.gate, self.last_label, self._release = gate, gate.label, release
            self.state = State.PARKED
            self._board.note()

    def end(self, state: State, *, result: Any = None, error: BaseException | None = None) -> None:
        """Record how it ended."""
        with self._board.changed:
            self.state, self.result, self.error = state, result, error
            self._board.note()

    def uses(self, link: Link) -> None:
        """Note that a connection is this task's; a pool may have given it to another before."""
        if link.used_by is not self:
            if link.used_by is not None:
                link.used_by.links.pop(link, None)
            link.used_by = self
            self.links[link] = None

    def hang_up(self, *, all_links: bool) -> None:
        """Close connections as the death of a process does: all, or those in a transaction."""
        for link in list(self.links):
            if all_links or link.in_transaction():
                link.hang_up()


def through(label: str, link: Link | None, operate: Callable[[], T], *, yields: bool = False) -> T:
    """Make a round trip when it is the task's turn; outside a task, at once."""
    task = CURRENT.get()
    if task is None:
        return operate()
    fault = task.arrive(Gate(task.name, label, yields))
    if fault is Fault.CRASH:
        raise TaskCrashed(label)
    if link is not None:
        task.uses(link)
    task.in_flight += 1
    try:
        if link is not None and fault is Fault.REQUEST_LOST:
            link.hang_up()
            raise link.lost()
        result = operate()
        if link is not None and fault is Fault.REPLY_LOST:
            link.hang_up()
            raise link.lost()
        return result
    finally:
        task.in_flight -= 1


async def through_async(label: str, link: Link | None, operate: Callable[[], Awaitable[T]]) -> T:
    """Make a round trip when it is the task's turn; outside a task, at once."""
    task = CURRENT.get()
    if task is None:
        return await operate()
    fault = await task.arrive_async(Gate(task.name, label))
    if fault is Fault.CRASH:
        raise TaskCrashed(label)
    if link is not None:
        task.uses(link)
    task.in_flight += 1
    try:
        if link is not None and fault is Fault.REQUEST_LOST:
            link.hang_up()
            raise link.lost()
        result = await operate()
        if link is not None and fault is Fault.REPLY_LOST:
            link.hang_up()
            raise link.lost()
        return result
    finally:
        task.in_flight -= 1


@contextmanager
def in_flight() -> Iterator[None]:
    """Say that this task talks to a server, though at no gate: it opens a connection."""
    task = CURRENT.get()
    if task is not None:
        task.in_flight += 1
    try:
        yield
    finally:
        if task is not None:
            task.in_flight -= 1


def _resolve(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_result(None)
