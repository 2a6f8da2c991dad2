"""What an exploration tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datapatterns.testing.interleaving.choosing import Fault
from datapatterns.testing.interleaving.story import Story


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the tasks of one schedule ended.

    Attributes:
        results: What the tasks that reached their end returned, by name.
        errors: What the others raised.
        faults: What befell whom.
        crashed: The names of those whose process died.
        token: Replays this schedule.
        story: Who did what, in order; ``str(story)`` has a column for each task.
    """

    results: Mapping[str, Any]
    errors: Mapping[str, BaseException]
    faults: Mapping[str, Fault]
    crashed: frozenset[str]
    token: str
    story: Story


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was explored without finding anything.

    Attributes:
        schedules: How many different schedules ran.
        exhausted: These were all within the bounds.
        blocked_steps: How often a task had to wait for another, in all schedules together.
        deadlocks: How often the server broke a deadlock.
        seconds: How long it took.
    """

    schedules: int
    exhausted: bool
    blocked_steps: int
    deadlocks: int
    seconds: float

    @property
    def schedules_per_second(self) -> float:
        """How many schedules ran in a second."""
        return self.schedules / self.seconds if self.seconds else 0.0


class InterleavingError(AssertionError):
    """A schedule after which an invariant does not hold.

    Attributes:
        outcome: How its tasks ended.
        token: Replays it.
        schedules: How many had been run until then, this one included.
    """

    def __init__(self, broken: str, outcome: Outcome, *, schedules: int) -> None:
        super().__init__(
            f"{broken}\n\n{outcome.story}\n\n"
            f"found in schedule {schedules:,}; replay: --datapatterns-replay={outcome.token}"
        )
        self.outcome, self.token, self.schedules = outcome, outcome.token, schedules
