"""All schedules within a bound, each once; pure."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from datapatterns.testing.interleaving.choosing import (
    Choice,
    Chooser,
    Fault,
    Gate,
    UnreadyError,
    befits,
    free_of_charge,
    in_order,
    names_of,
)
from datapatterns.testing.interleaving.results import DivergedError

_TRIES = 5


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

    Raises:
        ValueError: A bound is negative.
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
        return self._chooser_of(prefix)

    def run_next(self, attempt: Callable[[Chooser], object]) -> None:
        """Run the next schedule, and again if the server has not let the same task go on.

        When several wait for a row, it is the server who decides, and not always in the order in
        which they came. A schedule that diverges does so within its prefix, so it has found none.

        Args:
            attempt: Runs a chooser's schedule.

        Raises:
            DivergedError: Nobody had to wait in it, or it diverged each of five times.
        """
        __tracebackhide__ = True
        *_, prefix = heapq.heappop(self._open)
        self.explored += 1
        for tries_left in reversed(range(_TRIES)):
            try:
                attempt(self._chooser_of(prefix))
            except DivergedError as diverged:
                if not (tries_left and diverged.story.blocked_steps):
                    raise
            else:
                return

    def _chooser_of(self, prefix: "_Prefix") -> Chooser:
        taken: list[Choice] = []
        last: str | None = None

        def choose(ready: Sequence[Gate]) -> Choice:
            nonlocal last
            if len(taken) < len(prefix.choices):
                choice = prefix.choices[len(taken)]
                if choice.task not in {gate.task for gate in ready}:
                    raise UnreadyError(f"{choice.task!r} is not ready, only {names_of(ready)}")
            else:
                ordered = in_order(ready, last)
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
        free = free_of_charge(ordered, last)
        for gate in ordered:
            preemptions = prefix.preemptions + (gate not in free)
            if preemptions > self._max_preemptions:
                continue
            if gate is not ordered[0]:
                self._push(taken, Choice(gate.task), preemptions, prefix.faults)
            if prefix.faults < self._max_faults and self._faults and self._fault_at(gate):
                for fault in self._faults:
                    if befits(fault, gate):
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
