"""Is a register linearizable: does each call take place at one moment between begin and end?"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datapatterns.errors import HistoryError

CallName = Literal["read", "write", "swap"]

CONCURRENCY_MAX = 12
"""How many calls of one register may overlap: each doubles the work."""


@dataclass(frozen=True, slots=True)
class RegisterCall:
    """One call of one register: a row, a cache entry, a lock, a token.

    Leave out calls that certainly did nothing, and reads without an answer.

    Attributes:
        key: Which register.
        name: ``write``; ``read``; or ``swap``, which writes only where it finds ``expected``.
        value: What was written or read.
        invoked: When it began, in any unit, by one clock for all calls.
        returned: When it ended; None if nobody knows whether it took place, or will.
        expected: What a ``swap`` that succeeded, or may have succeeded, has replaced.

    Raises:
        ValueError: It has another name, or ended before it began.
    """

    key: Hashable
    name: CallName
    value: Hashable
    invoked: float
    returned: float | None
    expected: Hashable = None

    def __post_init__(self) -> None:
        if self.name not in get_args(CallName):
            raise ValueError(f"{self.name!r} is none of {', '.join(get_args(CallName))}")
        end = self.invoked if self.returned is None else self.returned
        if not self.invoked <= end:  # of a time that is no number, too
            raise ValueError(f"a call from {self.invoked} to {end} ends before it begins")


@dataclass(frozen=True, slots=True)
class RegisterViolation:
    """A call that took place at no possible moment.

    Attributes:
        call: The first that cannot be explained.
        possible: The values that the register can have had when it ended, in some order of the
            calls before.
    """

    call: RegisterCall
    possible: tuple[Any, ...]

    def __str__(self) -> str:
        call = self.call
        done = f"{call.name} {call.value!r}"
        if call.name == "swap":
            done = f"swap {call.expected!r} for {call.value!r}"
        values = ", ".join(map(repr, self.possible))
        return (
            f"{done} of {call.key!r} between {call.invoked} and {call.returned} fits into no order"
            f" of the calls; the value can have been {values} by then"
        )


def check_register(
    calls: Iterable[RegisterCall],
    *,
    initial: Hashable = None,
    concurrency_max: int = CONCURRENCY_MAX,
) -> dict[Hashable, RegisterViolation]:
    """Return, for each register that is not linearizable, the call that shows it.

    The method is that of Wing and Gong ("Testing and verifying concurrent objects", 1993), with
    Lowe's just-in-time order ("Testing for linearizability", 2017): calls take place as late as
    possible, and equal states are looked at once. Registers are checked one by one, which is all
    that linearizability needs. The price is exponential in the calls that overlap, linear in
    their number.

    Args:
        calls: In any order.
        initial: What each register holds before.
        concurrency_max: How many calls of one register may overlap. One of unknown outcome
            overlaps all later ones.

    Raises:
        HistoryError: More overlap; use fewer clients for each key, or more keys.
    """
    by_key: defaultdict[Hashable, list[RegisterCall]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    violations = {}
    for key, its_calls in by_key.items():
        violation = _violation(its_calls, initial, concurrency_max)
        if violation is not None:
            violations[key] = violation
    return violations


_State = tuple[frozenset[int], Hashable]
"""Which of the open calls have taken place, and the value after that."""


def _violation(
    calls: Sequence[RegisterCall], initial: Hashable, concurrency_max: int
) -> RegisterViolation | None:
    states: set[_State] = {(frozenset(), initial)}
    pending: set[int] = set()
    for _, is_end, number in _moments(calls):
        if not is_end:
            pending.add(number)
            _refuse_too_many(pending, calls[number], concurrency_max)
            continue
        # The call that ends must have taken place by now, after any of the others.
        reached = _reachable(states, pending, calls, until=number)
        states = {(done - {number}, value) for done, value in reached if number in done}
        if not states:
            possible = sorted({value for _, value in reached}, key=repr)
            return RegisterViolation(calls[number], tuple(possible))
        pending.remove(number)
    return None


def _moments(calls: Sequence[RegisterCall]) -> list[tuple[float, bool, int]]:
    # Of equal times the beginnings come first: then the calls overlap, and more is allowed.
    begins = [(call.invoked, False, number) for number, call in enumerate(calls)]
    ends = [
        (call.returned, True, number)
        for number, call in enumerate(calls)
        if call.returned is not None
    ]
    return sorted(begins + ends)


def _refuse_too_many(pending: set[int], call: RegisterCall, concurrency_max: int) -> None:
    if len(pending) > concurrency_max:
        raise HistoryError(
            f"more than {concurrency_max} calls of register {call.key!r} overlap at"
            f" {call.invoked}, those of unknown outcome included; use fewer clients for each key,"
            " or raise concurrency_max"
        )


def _reachable(
    states: set[_State], pending: set[int], calls: Sequence[RegisterCall], *, until: int
) -> set[_State]:
    """Return the states that open calls lead to; none goes on after ``until`` has taken place."""
    reached = set(states)
    work = list(states)
    while work:
        done, value = work.pop()
        if until in done:
            continue
        for number in pending - done:
            call = calls[number]
            found = call.expected if call.name == "swap" else call.value
            if call.name != "write" and found != value:
                continue
            after: _State = done | {number}, value if call.name == "read" else call.value
            if after not in reached:
                reached.add(after)
                work.append(after)
    return reached
