"""Record what clients did and saw, and name the anomalies that it proves."""

from datapatterns.testing.histories.checking import (
    HistoryReport,
    InconsistentHistoryError,
    Witness,
    assert_consistent,
    check_history,
    verdict,
)
from datapatterns.testing.histories.events import HistoryEvent, Operation
from datapatterns.testing.histories.files import dump_history, load_history
from datapatterns.testing.histories.levels import ConsistencyModel

__all__ = [
    "ConsistencyModel",
    "HistoryEvent",
    "HistoryReport",
    "InconsistentHistoryError",
    "Operation",
    "Witness",
    "assert_consistent",
    "check_history",
    "dump_history",
    "load_history",
    "verdict",
]
