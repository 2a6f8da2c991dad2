"""Record what clients did and saw, and name the anomalies that it proves."""

from datapatterns.testing.histories.checking import (
    HistoryReport,
    InconsistentHistoryError,
    Witness,
    assert_consistent,
    check_history,
    verdict,
)
from datapatterns.testing.histories.events import HistoryEvent, ListOperation
from datapatterns.testing.histories.files import dump_history, load_history
from datapatterns.testing.histories.oracles import check_bank, check_sequence, check_set
from datapatterns.testing.histories.recording import RecordedClient, RecordedTransaction, Recorder
from datapatterns.testing.histories.registers import (
    RegisterCall,
    RegisterViolation,
    check_register,
)
from datapatterns.testing.histories.workload import (
    ListStore,
    ListWorkload,
    list_transactions,
    run_list_append,
)

__all__ = [
    "HistoryEvent",
    "HistoryReport",
    "InconsistentHistoryError",
    "ListOperation",
    "ListStore",
    "ListWorkload",
    "RecordedClient",
    "RecordedTransaction",
    "Recorder",
    "RegisterCall",
    "RegisterViolation",
    "Witness",
    "assert_consistent",
    "check_bank",
    "check_history",
    "check_register",
    "check_sequence",
    "check_set",
    "dump_history",
    "list_transactions",
    "load_history",
    "run_list_append",
    "verdict",
]
