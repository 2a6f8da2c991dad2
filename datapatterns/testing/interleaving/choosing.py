"""Who goes next: schedules as data, and the searches over them; pure.

A schedule is the list of the gates that were opened, in order. The unit of a search is the
*preemption*: a switch away from a task that could have gone on. Most races need one or two of
them (Musuvathi and Qadeer, "Iterative Context Bounding for Systematic Testing of Multithreaded
Programs", PLDI 2007), so that a search in the order of preemptions finds the simplest story first.
"""

import heapq
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, groupby
from typing import Protocol

_NAME = re.compile(r"[A-Za-z_]\w{0,39}")
_STEP = re.compile(r"([A-Za-z_]\w*)(?:\*(\d{1,6})|!([a-z-]+))?")
_TOKEN_CHARACTERS_MAX = 100_000


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
    """

    task: str
    label: str
    yields: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The gate of this task is opened, with or without a fault."""

    task: str
    fault: Fault | None = None


class Chooser(Protocol):
    """Decides which of the gates at hand is opened."""

    def __call__(self, ready: Sequence[Gate]) -> Choice:
        """Return whose gate is opened, and what befalls that task."""
        ...


class DivergedError(AssertionError):
    """A schedule does not fit the code any more, or the code does not do the same each time."""


def check_names(names: Iterable[str]) -> None:
    """Refuse names that a token cannot hold.

    Raises:
        ValueError: One isn't made of 1 to 40 letters, digits and underscores.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"the task name {name!r} is not usable in a replay token; "
                "use up to 40 letters, digits and underscores, a letter first"
            )


def in_order(ready: Sequence[Gate], last: str | None) -> list[Gate]:
    """Return the gates with the one that needs no switch first and the sleepers last."""
    return sorted(ready, key=lambda gate: (gate.yields, gate.task != last))


def to_token(choices: Iterable[Choice]) -> str:
    """Write a schedule as text: ``alice*2.bob!crash``.

    >>> to_token([Choice("a"), Choice("a"), Choice("b", Fault.CRASH)])
    'a*2.b!crash'
    """
    parts = []
    for choice, same in groupby(choices):
        times = len(list(same))
        if choice.fault:
            parts += [f"{choice.task}!{choice.fault}"] * times
        else:
            parts.append(choice.task if times == 1 else f"{choice.task}*{times}")
    return ".".join(parts)


def from_token(token: str) -> list[Choice]:
    """Read what `to_token` wrote.

    Raises:
        ValueError: It is not such a text.
    """
    if len(token) > _TOKEN_CHARACTERS_MAX:
        raise ValueError(f"a replay token has at most {_TOKEN_CHARACTERS_MAX:,} characters")
    choices = []
    for part in token.split(".") if token else []:
        match = _STEP.fullmatch(part)
        if not match or (match[3] and match[3] not in set(Fault)):
            raise ValueError(f"{part!r} is no step of a replay token such as 'alice*2.bob!crash'")
        times = int(match[2] or 1)
        choices += [Choice(match[1], Fault(match[3]) if match[3] else None)] * times
    return choices


def replaying(choices: Iterable[Choice]) -> Chooser:
    """Return a chooser that takes exactly these choices."""
    left = iter(choices)

    def choose(ready: Sequence[Gate]) -> Choice:
        choice = next(left, None)
        if choice is None:
            raise DivergedError(f"the token has ended, and {_names(ready)} could go on")
        if choice.task not in {gate.task for gate in ready}:
            raise DivergedError(f"{choice.task!r} is not ready, only {_names(ready)}")
        return choice

    return choose


def picking(picks: Iterable[int], faults: Mapping[int, Fault] | None = None) -> Chooser:
    """Return a chooser for generated numbers.

    0 means "no preemption", and so does the end of the numbers: what shrinks, shrinks to the fewest
    switches.

    Args:
        picks: Which of the gates in order, modulo their number, step by step.
        faults: What happens at the steps of these numbers, counted from 0.
    """
    left, steps, befalls = iter(picks), count(), faults or {}
    last: str | None = None

    def choose(ready: Sequence[Gate]) -> Choice:
        nonlocal last
        gate = in_order(ready, last)[next(left, 0) % len(ready)]
        last = gate.task
        return Choice(gate.task, befalls.get(next(steps)))

    return choose


class BoundedSearch:
    """All schedules within a bound, those with the fewest preemptions and faults first.

    Stateless: each schedule runs from the start, along a prefix that an earlier one has found and
    then without preemptions. No schedule runs twice. The number of schedules grows with the power
    of the bound; `explored` and `found` say how far it has come.

    Args:
        max_preemptions: How often a task may be left that could go on.
        faults: What may befall a task.
        max_faults: How often, in one schedule.
        fault_at: At which gates; unless given, at all.
    """

    def __init__(
        self,
        *,
        max_preemptions: int,
        faults: Sequence[Fault] = (),
        max_faults: int = 1,
        fault_at: Callable[[Gate], bool] = lambda _: True,
    ) -> None:
        if max_preemptions < 0 or max_faults < 0:
            raise ValueError("bounds of a search are not negative")
        self._max_preemptions, self._max_faults = max_preemptions, max_faults
        self._faults, self._fault_at = tuple(faults), fault_at
        self._ties = count()
        self._open: list[tuple[int, int, int, _Prefix]] = [(0, 0, 0, _Prefix((), 0, 0))]
        self.explored = 0

    @property
    def found(self) -> int:
        """How many more schedules are known and still to be run."""
        return len(self._open)

    def next_chooser(self) -> Chooser:
        """Return the chooser of the next schedule; call only while `found` is not 0."""
        *_, prefix = heapq.heappop(self._open)
        self.explored += 1
        return self._chooser(prefix)

    def _chooser(self, prefix: "_Prefix") -> Chooser:
        taken: list[Choice] = []
        last: str | None = None

        def choose(ready: Sequence[Gate]) -> Choice:
            nonlocal last
            ordered = in_order(ready, last)
            if len(taken) < len(prefix.choices):
                choice = prefix.choices[len(taken)]
                if choice.task not in {gate.task for gate in ready}:
                    raise DivergedError(
                        f"step {len(taken) + 1}: {choice.task!r} is not ready, only {_names(ready)}"
                        "; the code under test does not do the same each time"
                    )
            else:
                choice = Choice(ordered[0].task)
                self._remember_others(prefix, taken, ordered, last)
            taken.append(choice)
            last = choice.task
            return choice

        return choose

    def _remember_others(
        self, prefix: "_Prefix", taken: list[Choice], ordered: list[Gate], last: str | None
    ) -> None:
        # Beyond its prefix a schedule makes no preemption and no fault, so that the prefix's
        # own count is the count of everything up to here.
        first = ordered[0]
        for gate in ordered:
            costs = first.task == last and not first.yields and gate is not first
            preemptions = prefix.preemptions + costs
            if preemptions > self._max_preemptions:
                continue
            if gate is not first:
                self._push(taken, Choice(gate.task), preemptions, prefix.faults)
            if prefix.faults < self._max_faults and self._fault_at(gate):
                for fault in self._faults:
                    self._push(taken, Choice(gate.task, fault), preemptions, prefix.faults + 1)

    def _push(self, taken: list[Choice], choice: Choice, preemptions: int, faults: int) -> None:
        prefix = _Prefix((*taken, choice), preemptions, faults)
        entry = (preemptions + faults, len(prefix.choices), next(self._ties), prefix)
        heapq.heappush(self._open, entry)


@dataclass(frozen=True, slots=True)
class _Prefix:
    choices: tuple[Choice, ...]
    preemptions: int
    faults: int


def _names(ready: Sequence[Gate]) -> str:
    return ", ".join(sorted(repr(gate.task) for gate in ready)) or "nobody"
