"""Row changes as a set: captured by triggers, taken by each consumer exactly once."""

from datapatterns.change_log.consuming import Consumer, current_snapshot
from datapatterns.change_log.log import ChangeLog
from datapatterns.change_log.pending import not_shown_by, pending_for
from datapatterns.change_log.schema import PgSnapshot, Xid8, change_log_tables
from datapatterns.change_log.shapes import capture_changed
from datapatterns.change_log.snapshots import Snapshot, Xid
from datapatterns.change_log.status import (
    ChangeLogStatus,
    ConsumerStatus,
    LogStatus,
    OldestTransaction,
)
from datapatterns.change_log.tokens import ChangeToken, change_token

__all__ = [
    "ChangeLog",
    "ChangeLogStatus",
    "ChangeToken",
    "Consumer",
    "ConsumerStatus",
    "LogStatus",
    "OldestTransaction",
    "PgSnapshot",
    "Snapshot",
    "Xid",
    "Xid8",
    "capture_changed",
    "change_log_tables",
    "change_token",
    "current_snapshot",
    "not_shown_by",
    "pending_for",
]
