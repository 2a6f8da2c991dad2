"""Tools for tests of applications, and of this library."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datapatterns.testing.clock import ManualClock
from datapatterns.testing.databases import Databases
from datapatterns.testing.faults import (
    FailpointNotReachedError,
    FaultProxy,
    FaultProxyFactory,
    Halt,
    PostgresFaults,
    RedisDump,
    RedisFaults,
    Trap,
    armed,
    halted_at,
    run_until_failpoint,
)
from datapatterns.testing.histories import (
    HistoryEvent,
    HistoryReport,
    InconsistentHistoryError,
    ListOperation,
    ListStore,
    ListWorkload,
    RecordedClient,
    RecordedTransaction,
    Recorder,
    RegisterCall,
    RegisterViolation,
    Witness,
    assert_consistent,
    check_bank,
    check_history,
    check_register,
    check_sequence,
    check_set,
    dump_history,
    list_transactions,
    load_history,
    run_list_append,
    verdict,
)
from datapatterns.testing.interleaving import (
    Choice,
    Chooser,
    DivergedError,
    Exploration,
    Explorer,
    Fault,
    Gate,
    InterleavingError,
    Outcome,
    ScheduleError,
    StuckError,
    VirtualClock,
    pause_point,
    pause_point_async,
)
from datapatterns.testing.models import (
    Call,
    DeciderSpec,
    Decision,
    Derived,
    DerivedCache,
    DerivedTable,
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
    from datapatterns.testing.interleaving.schedules import Schedule, schedules
    from datapatterns.testing.models import strategies
    from datapatterns.testing.models.aggregate_machine import AggregateMachine, aggregate_machine
    from datapatterns.testing.models.consistency_machine import (
        ConsistencyMachine,
        consistency_machine,
    )


__all__ = [
    "AggregateMachine",
    "Call",
    "Choice",
    "Chooser",
    "ConsistencyMachine",
    "Databases",
    "DeciderSpec",
    "Decision",
    "Derived",
    "DerivedCache",
    "DerivedTable",
    "DivergedError",
    "Exploration",
    "Explorer",
    "FailpointNotReachedError",
    "Fault",
    "FaultProxy",
    "FaultProxyFactory",
    "Gate",
    "Halt",
    "HistoryEvent",
    "HistoryReport",
    "ImpureEvolveError",
    "InconsistentHistoryError",
    "InterleavingError",
    "ListOperation",
    "ListStore",
    "ListWorkload",
    "ManualClock",
    "Outcome",
    "PostgresFaults",
    "ProjectionSpec",
    "RecordedClient",
    "RecordedTransaction",
    "Recorder",
    "RedisDump",
    "RedisFaults",
    "RegisterCall",
    "RegisterViolation",
    "Schedule",
    "ScheduleError",
    "SpecError",
    "StoredPayload",
    "StuckError",
    "Trap",
    "VirtualClock",
    "Witness",
    "aggregate_machine",
    "armed",
    "assert_consistent",
    "assert_upcasters",
    "check_bank",
    "check_history",
    "check_register",
    "check_sequence",
    "check_set",
    "consistency_machine",
    "dump_history",
    "halted_at",
    "list_transactions",
    "load_history",
    "pause_point",
    "pause_point_async",
    "read_corpus",
    "record_corpus",
    "run_list_append",
    "run_until_failpoint",
    "schedules",
    "strategies",
    "verdict",
    "wait_until",
]

# Only when they are asked for: a plugin of pytest must load where Hypothesis is not installed.
_NEED_HYPOTHESIS = {
    "AggregateMachine": "datapatterns.testing.models.aggregate_machine",
    "Schedule": "datapatterns.testing.interleaving.schedules",
    "aggregate_machine": "datapatterns.testing.models.aggregate_machine",
    "ConsistencyMachine": "datapatterns.testing.models.consistency_machine",
    "consistency_machine": "datapatterns.testing.models.consistency_machine",
    "schedules": "datapatterns.testing.interleaving.schedules",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- whatever has the name
    if name == "strategies":
        return import_module("datapatterns.testing.models.strategies")
    if name in _NEED_HYPOTHESIS:
        return getattr(import_module(_NEED_HYPOTHESIS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
