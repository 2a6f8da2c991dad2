"""Break servers, networks and workers on purpose, and see what the code does."""

from datapatterns.testing.faults.postgres_faults import PostgresFaults
from datapatterns.testing.faults.proxy import FaultProxy, FaultProxyFactory
from datapatterns.testing.faults.redis_faults import RedisDump, RedisFaults
from datapatterns.testing.faults.traps import Trap
from datapatterns.testing.faults.workers import (
    FailpointNotReachedError,
    Halt,
    armed,
    halted_at,
    run_until_failpoint,
)

__all__ = [
    "FailpointNotReachedError",
    "FaultProxy",
    "FaultProxyFactory",
    "Halt",
    "PostgresFaults",
    "RedisDump",
    "RedisFaults",
    "Trap",
    "armed",
    "halted_at",
    "run_until_failpoint",
]
