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
        schedules: How many schedules ran; those of an exhaustive search are all different.
        exhausted: These were all within the bounds.
        blocked_steps: How often a task had to wait for another, in all schedules together.
        deadlocks: How often the server broke a deadlock.
        seconds: How long it took.
        steps: How many gates were passed, in all schedules together. If none was, the tasks use
            other connections than the explorer's, and nothing was interleaved.
    """

    schedules: int
    exhausted: bool
    blocked_steps: int
    deadlocks: int
    seconds: float
    steps: int = 0

    @property
    def schedules_per_second(self) -> float:
        """How many schedules ran in a second."""
        return self.schedules / self.seconds if self.seconds else 0.0


class ScheduleError(AssertionError):
    """A schedule has not ended as it should.

    Attributes:
        story: Who did what until then, in order.
        token: Replays it.
    """

    def __init__(self, reason: str, *, story: Story, token: str, found: str = "") -> None:
        super().__init__(f"{reason}\n\n{story}\n\n{found}replay: --datapatterns-replay={token}")
        self.story, self.token = story, token


class InterleavingError(ScheduleError):
    """A schedule after which an invariant does not hold, or in which a task has failed.

    Attributes:
        outcome: How its tasks ended.
        schedules: How many had been run until then, this one included.
    """

    def __init__(self, broken: str, outcome: Outcome, *, schedules: int) -> None:
        found = f"found in schedule {schedules:,}; "
        super().__init__(broken, story=outcome.story, token=outcome.token, found=found)
        self.broken, self.outcome, self.schedules = broken, outcome, schedules


class StuckError(ScheduleError):
    """The tasks of a schedule go neither forwards nor to their end.

    A deadlock that no server can see, a wake-up that never comes, a session outside the schedule
    that holds a lock, or a loop without end: the message says which.
    """


class DivergedError(ScheduleError):
    """A schedule does not fit the code any more, or the code does not do the same each time."""
