"""Tools for tests of applications, and of this library."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datapatterns.testing.clock import ManualClock
from datapatterns.testing.databases import Databases
from datapatterns.testing.faults import (
    FailpointNotReachedError,
    FaultProxy,
    PostgresFaults,
    RedisFaults,
    armed,
    halted_at,
    run_until_failpoint,
)
from datapatterns.testing.interleaving import (
    DivergedError,
    Exploration,
    Explorer,
    Fault,
    Gate,
    InterleavingError,
    Outcome,
    StuckError,
)
from datapatterns.testing.models import (
    Call,
    Decider,
    DeciderSpec,
    Decision,
    ImpureEvolveError,
    ProjectionSpec,
    SpecError,
    StoredPayload,
    assert_upcasters,
    read_corpus,
    record_corpus,
)
from datapatterns.testing.waiting import wait_until

if TYPE_CHECKING:
    from datapatterns.testing.models import strategies
    from datapatterns.testing.models.aggregate_machine import AggregateMachine, aggregate_machine

__all__ = [
    "AggregateMachine",
    "Call",
    "Databases",
    "Decider",
    "DeciderSpec",
    "Decision",
    "DivergedError",
    "Exploration",
    "Explorer",
    "FailpointNotReachedError",
    "Fault",
    "FaultProxy",
    "Gate",
    "ImpureEvolveError",
    "InterleavingError",
    "ManualClock",
    "Outcome",
    "PostgresFaults",
    "ProjectionSpec",
    "RedisFaults",
    "SpecError",
    "StoredPayload",
    "StuckError",
    "aggregate_machine",
    "armed",
    "assert_upcasters",
    "halted_at",
    "read_corpus",
    "record_corpus",
    "run_until_failpoint",
    "strategies",
    "wait_until",
]

# Only when they are asked for: a plugin of pytest must load where Hypothesis is not installed.
_NEED_HYPOTHESIS = {
    "AggregateMachine": "datapatterns.testing.models.aggregate_machine",
    "aggregate_machine": "datapatterns.testing.models.aggregate_machine",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- whatever has the name
    if name == "strategies":
        return import_module("datapatterns.testing.models.strategies")
    if name in _NEED_HYPOTHESIS:
        return getattr(import_module(_NEED_HYPOTHESIS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
