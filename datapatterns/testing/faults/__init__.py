"""Break servers and networks on purpose, and see what the code does."""

from datapatterns.testing.faults.proxy import FaultProxy
from datapatterns.testing.faults.traps import Trap

__all__ = ["FaultProxy", "Trap"]
