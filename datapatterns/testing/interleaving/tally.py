"""How much a search has run so far."""

import time

from datapatterns.testing.interleaving.results import Exploration, Outcome
from datapatterns.testing.interleaving.story import sqlstate_of

_DEADLOCK = "40P01"


class Tally:
    """Counts schedules, waits and deadlocks, and the time."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.schedules = self._steps = self._blocked_steps = self._deadlocks = 0
        self.exhausted = False

    def add(self, outcome: Outcome) -> None:
        """Count a schedule that has ended."""
        self.schedules += 1
        self._steps += outcome.story.steps
        self._blocked_steps += outcome.story.blocked_steps
        errors = outcome.errors.values()
        self._deadlocks += sum(sqlstate_of(error) == _DEADLOCK for error in errors)

    def exploration(self) -> Exploration:
        """Return the counts."""
        return Exploration(
            schedules=self.schedules,
            exhausted=self.exhausted,
            blocked_steps=self._blocked_steps,
            deadlocks=self._deadlocks,
            seconds=time.monotonic() - self._began,
            steps=self._steps,
        )
