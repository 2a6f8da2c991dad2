"""Explore the interleavings of concurrent code on real servers."""

from datapatterns.testing.interleaving.choosing import DivergedError, Fault, Gate
from datapatterns.testing.interleaving.explorer import Explorer
from datapatterns.testing.interleaving.results import Exploration, InterleavingError, Outcome
from datapatterns.testing.interleaving.scheduler import StuckError

__all__ = [
    "DivergedError",
    "Exploration",
    "Explorer",
    "Fault",
    "Gate",
    "InterleavingError",
    "Outcome",
    "StuckError",
]
