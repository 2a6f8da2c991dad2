"""Ask a connection what it has seen, where that may be older than what Redis was told."""

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, func, select

from datapatterns.cache_aside.milestones import seen_for_certain
from datapatterns.change_log.schema import PgSnapshot
from datapatterns.change_log.snapshots import Snapshot

_KEEPING_ITS_SNAPSHOT = ("repeatable read", "serializable")

_look = select(
    func.pg_current_snapshot(type_=PgSnapshot),
    func.pg_is_in_recovery(),
    func.pg_current_xact_id_if_assigned().is_(None),
    func.current_setting("transaction_isolation").in_(_KEEPING_ITS_SNAPSHOT),
)


def seen_before(conn: Connection) -> Snapshot:
    """Return what statements of ``conn`` that begin after this see for certain."""
    snapshot, is_standby, *_ = conn.execute(_look).one()
    return seen_for_certain(snapshot, is_standby=is_standby)


def seen_by_all_of(conn: Connection) -> Snapshot | None:
    """Return what the transaction of ``conn`` has seen for certain in all its statements so far.

    None if it may have seen what nobody else may: own writes, also those that went past the
    library and those that a savepoint took back. None, too, if its statements had snapshots of
    their own, for then this one tells nothing of theirs. So ask it after what was read.
    """
    driver = conn.connection.driver_connection
    if driver is None or driver.info.transaction_status != TransactionStatus.INTRANS:
        return None  # what was read has failed, and whoever read it went on
    snapshot, is_standby, has_not_written, keeps_its_snapshot = conn.execute(_look).one()
    if not has_not_written or not keeps_its_snapshot:
        return None
    return seen_for_certain(snapshot, is_standby=is_standby)
