"""Who goes next: gates, and what decides which of them is opened; pure.

A schedule is the list of the gates that were opened, in order. The unit of a search is the
*preemption*: a switch away from a task that could have gone on. Most races need one or two of
them (Musuvathi and Qadeer, "Iterative Context Bounding for Systematic Testing of Multithreaded
Programs", PLDI 2007), so that a search in the order of preemptions finds the simplest story first.

Whoever sleeps lets others go first, for nothing; waking it before its turn is a preemption. So a
loop that polls cannot keep a search busy for ever (the same, "Fair Stateless Model Checking",
PLDI 2008).
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import Protocol


class Fault(StrEnum):
    """What can befall a task at a gate."""

    CRASH = "crash"
    """Its process dies before the request is sent: its connections close, nothing of it goes on."""
    REQUEST_LOST = "request-lost"
    """Its connection breaks before the server has heard the request."""
    REPLY_LOST = "reply-lost"
    """Its connection breaks after the server has done what was asked: the outcome is unknown."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A round trip that a task is about to make.

    Attributes:
        task: The name of the task.
        label: The SQL text, shortened; ``COMMIT``, ``ROLLBACK``; or ``redis `` and the command.
        yields: It is a sleep: whoever sleeps lets others go first.
        due: When the sleep ends, in seconds of the explorer's clock.
        in_server: A server is asked; a connection can be lost here.
    """

    task: str
    label: str
    yields: bool = False
    due: float = 0.0
    in_server: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """The gate of this task is opened, with or without a fault."""

    task: str
    fault: Fault | None = None


class Chooser(Protocol):
    """Decides which of the gates at hand is opened."""

    def __call__(self, ready: Sequence[Gate], /) -> Choice:
        """Return whose gate is opened, and what befalls that task."""
        ...


class Plan(Protocol):
    """Decides it for one schedule, and can do so again: what `schedules` draws."""

    def chooser(self) -> Chooser:
        """Return what makes the same choices, once."""
        ...


class UnreadyError(Exception):
    """A chooser wants a gate that is not there; the scheduler tells it as a `DivergedError`."""


def free_of_charge(ready: Sequence[Gate], last: str | None) -> list[Gate]:
    """Return the gates whose opening preempts nobody.

    Args:
        ready: All that could be opened.
        last: The task that has moved last.
    """
    awake = [gate for gate in ready if not gate.yields]
    if not awake:
        soonest = min((gate.due for gate in ready), default=0.0)
        return [gate for gate in ready if gate.due == soonest]
    return [gate for gate in awake if gate.task == last] or awake


def in_order(ready: Sequence[Gate], last: str | None) -> list[Gate]:
    """Return the gates with those that preempt nobody first; the first is the least change."""
    free = free_of_charge(ready, last)
    return sorted(ready, key=lambda gate: (gate not in free, gate.yields, gate.task != last))


class Replaying:
    """Takes exactly these choices, in their order."""

    def __init__(self, choices: Iterable[Choice]) -> None:
        self._left = deque(choices)

    def __call__(self, ready: Sequence[Gate], /) -> Choice:
        """Return the next of them."""
        if not self._left:
            raise UnreadyError(f"the schedule has ended, and {names_of(ready)} could go on")
        choice = self._left.popleft()
        if choice.task not in {gate.task for gate in ready}:
            raise UnreadyError(f"{choice.task!r} is not ready, only {names_of(ready)}")
        return choice

    def left(self) -> int:
        """Return how many have not been taken yet."""
        return len(self._left)


def replaying(choices: Iterable[Choice]) -> Chooser:
    """Return a chooser that takes exactly these choices."""
    return Replaying(choices)


def picking(
    picks: Mapping[int, int],
    *,
    faults: Mapping[int, Fault] | None = None,
    fault_at: Callable[[Gate], bool] = lambda _: True,
) -> Chooser:
    """Return a chooser for generated numbers.

    A step that is not named takes the first gate in order, which preempts nobody: what shrinks,
    shrinks to the fewest switches.

    Args:
        picks: Step -> which of the gates in order, modulo their number; both from 0.
        faults: What happens at which of the opened gates that ``fault_at`` accepts, from 0.
        fault_at: Where a fault may happen.
    """
    steps, eligible, befalls = count(), count(), faults or {}
    last: str | None = None

    def choose(ready: Sequence[Gate]) -> Choice:
        nonlocal last
        gate = in_order(ready, last)[picks.get(next(steps), 0) % len(ready)]
        last = gate.task
        fault = befalls.get(next(eligible)) if fault_at(gate) else None
        return Choice(gate.task, fault if fault and befits(fault, gate) else None)

    return choose


def befits(fault: Fault, gate: Gate) -> bool:
    """Return whether a fault can happen at a gate: only a crash can, where no server is asked."""
    return gate.in_server or fault is Fault.CRASH


def names_of(ready: Sequence[Gate]) -> str:
    """Return the names of tasks for a message."""
    return ", ".join(sorted(repr(gate.task) for gate in ready)) or "nobody"
