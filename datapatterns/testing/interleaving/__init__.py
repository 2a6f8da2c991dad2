"""Explore the interleavings of concurrent code on real servers."""

from datapatterns.testing.interleaving.choosing import Choice, Chooser, Fault, Gate
from datapatterns.testing.interleaving.explorer import Explorer
from datapatterns.testing.interleaving.pausing import pause_point, pause_point_async
from datapatterns.testing.interleaving.results import (
    DivergedError,
    Exploration,
    InterleavingError,
    Outcome,
    ScheduleError,
    StuckError,
)
from datapatterns.testing.interleaving.virtual_time import VirtualClock

__all__ = [
    "Choice",
    "Chooser",
    "DivergedError",
    "Exploration",
    "Explorer",
    "Fault",
    "Gate",
    "InterleavingError",
    "Outcome",
    "ScheduleError",
    "StuckError",
    "VirtualClock",
    "pause_point",
    "pause_point_async",
]
