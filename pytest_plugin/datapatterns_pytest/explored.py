"""How much a run has explored."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from datapatterns.testing import Exploration


@dataclass(slots=True)
class Explored:
    """The explorations of a run, added up.

    Attributes:
        explorations: How many there were.
        complete: How many of them ran all schedules within their bounds.
        stepless: How many of them passed no gate at all, because their tasks use other connections.
        schedules: How many schedules ran.
        seconds: How long they took.
    """

    explorations: int = 0
    complete: int = 0
    stepless: int = 0
    schedules: int = 0
    seconds: float = 0.0

    def report(self, exploration: "Exploration") -> None:
        """Add an exploration."""
        self.add(
            explorations=1,
            complete=exploration.exhausted,
            stepless=bool(exploration.schedules) and not exploration.steps,
            schedules=exploration.schedules,
            seconds=exploration.seconds,
        )

    def add(
        self, *, explorations: int, complete: int, stepless: int, schedules: int, seconds: float
    ) -> None:
        """Add the sums of some."""
        self.explorations += explorations
        self.complete += complete
        self.stepless += stepless
        self.schedules += schedules
        self.seconds += seconds

    def sums(self) -> dict[str, float]:
        """Return what `add` takes."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.schedules:
            return ""
        rate = self.schedules / self.seconds if self.seconds else 0.0
        stepless = (
            f"; {self.stepless} passed no gate: do their tasks use the explorer's connections?"
            if self.stepless
            else ""
        )
        return (
            f"datapatterns: {self.explorations} explorations, {self.complete} of them complete: "
            f"{self.schedules:,} schedules in {self.seconds:.1f} s ({rate:,.0f} a second){stepless}"
        )


explored_in: pytest.StashKey[Explored] = pytest.StashKey()
"""Where a run's configuration keeps them."""
