"""Tools for tests of applications, and of this library."""

from datapatterns.testing.clock import ManualClock
from datapatterns.testing.databases import Databases
from datapatterns.testing.waiting import wait_until

__all__ = ["Databases", "ManualClock", "wait_until"]
