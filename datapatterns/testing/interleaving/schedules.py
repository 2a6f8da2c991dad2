"""Generated schedules: for searches with Hypothesis, and for tests of your own."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from datapatterns.testing.interleaving.choosing import Chooser, Fault, Gate, picking
from datapatterns.testing.interleaving.results import InterleavingError

T = TypeVar("T")

_SWITCHES_MAX = 6


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where to depart from running each task to its end.

    Attributes:
        switches: Step -> the how-manieth of the others goes on instead; steps count from 0.
        faults: What happens at which of the gates that ``fault_at`` accepts, from 0.
        fault_at: Where a fault may happen; unless given, anywhere.
    """

    switches: Mapping[int, int] = field(default_factory=dict)
    faults: Mapping[int, Fault] = field(default_factory=dict)
    fault_at: Callable[[Gate], bool] | None = field(default=None, repr=False)

    def chooser(self) -> Chooser:
        """Return what makes these choices, once."""
        return picking(self.switches, faults=self.faults, fault_at=self.fault_at or _anywhere)


def schedules(
    *,
    steps: int = 40,
    tasks: int = 4,
    crash_at: Callable[[Gate], bool] | None = None,
    faults: Collection[Fault] = tuple(Fault),
) -> st.SearchStrategy[Schedule]:
    """Return schedules for ``@given``; they shrink to the fewest switches and no fault.

    Args:
        steps: About how many round trips all tasks make together.
        tasks: How many tasks there are, at most.
        crash_at: At which gates a fault may happen; unless given, at none.
        faults: Which ones, at most one in each schedule.
    """
    at = st.integers(0, max(0, steps - 1))
    switches = st.dictionaries(at, st.integers(1, max(1, tasks - 1)), max_size=_SWITCHES_MAX)
    if crash_at is None:
        return switches.map(Schedule)
    befalls = st.dictionaries(at, st.sampled_from([Fault(each) for each in faults]), max_size=1)
    return st.builds(Schedule, switches, befalls, st.just(crash_at))


def first_failing(
    attempt: Callable[[Schedule], T],
    strategy: st.SearchStrategy[Schedule],
    *,
    examples: int,
    with_seed: int | None,
) -> InterleavingError | None:
    """Return the simplest failure that Hypothesis finds, or None.

    Args:
        attempt: Runs a schedule.
        strategy: Where schedules come from.
        examples: How many are tried before one fails; shrinking tries more.
        with_seed: Other schedules for each number; unless given, the same ones every time.
    """
    failures: list[InterleavingError] = []

    # No deadline and no database: time is the servers', and each search begins afresh. Not the
    # phase "explain" either, which runs each failure many times more.
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=with_seed is None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def search(schedule: Schedule) -> None:
        try:
            attempt(schedule)
        except InterleavingError as error:
            failures.append(error)
            raise
        except Exception as error:
            raise _Stop(error) from error

    try:
        (search if with_seed is None else seed(with_seed)(search))()
    except InterleavingError as simplest:
        return simplest
    except Flaky:  # it did not fail a second time: the code does not do the same each time
        return failures[-1]
    except _Stop as stop:
        raise stop.error from None
    return None


class _Stop(BaseException):
    """Ends a search at once: what has happened is no finding that could be shrunk."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _anywhere(_gate: Gate) -> bool:
    return True
