"""Tools for tests of applications, and of this library."""

from datapatterns.testing.clock import ManualClock
from datapatterns.testing.databases import Databases
from datapatterns.testing.models import (
    Call,
    Decider,
    DeciderSpec,
    Decision,
    ImpureEvolveError,
    SpecError,
)
from datapatterns.testing.waiting import wait_until

__all__ = [
    "Call",
    "Databases",
    "Decider",
    "DeciderSpec",
    "Decision",
    "ImpureEvolveError",
    "ManualClock",
    "SpecError",
    "wait_until",
]
