"""Delete what everybody has consumed."""

from typing import Any

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Select,
    all_,
    any_,
    column,
    delete,
    func,
    select,
    table,
)

from datapatterns.change_log.capture_names import batches_name, rows_name
from datapatterns.change_log.consuming import (
    current_snapshot,
    require_own_snapshot,
    require_read_committed,
)
from datapatterns.change_log.identity import DatabaseIdentity
from datapatterns.change_log.inspecting import BATCHED_ROWS
from datapatterns.change_log.locking import by_table
from datapatterns.change_log.schema import Xid8, change_log_tables


def collect_garbage(conn: Connection, *, schema: str, limit: int = 10_000) -> int:
    """Delete logged changes that every consumer has consumed; return how many.

    Logs that somebody is registering for are left for the next time. Writers that take long hold
    nothing back: what others have committed meanwhile goes as soon as it is consumed.

    Args:
        conn: A connection in a transaction. The caller commits.
        schema: Where the library's tables live.
        limit: How many rows to delete at most from each log, but for the rest of a batch; call
            again while it is reached.

    Raises:
        ForeignSnapshotError: A consumer was last advanced in another database.
        IsolationLevelError: The transaction is not READ COMMITTED.
    """
    require_read_committed(conn)
    tables = change_log_tables(schema)
    # Who registers holds these rows; once they are ours, a later statement sees all consumers.
    # By the tables' names, as who captures several.
    free = select(tables.captured.c.log_name).order_by(*by_table(schema))
    log_names = conn.scalars(free.with_for_update(skip_locked=True)).all()
    require_own_snapshots(conn, schema)
    deleted = 0
    for log_name in log_names:
        rows = _collect_rows(conn, log_name, schema=schema, limit=limit)
        batched = _collect_batches(conn, log_name, schema=schema, limit=limit - rows)
        deleted += rows + batched
    return deleted


def _collect_rows(conn: Connection, log_name: str, *, schema: str, limit: int) -> int:
    log = table(rows_name(log_name), Column("change_xid", Xid8), column("ctid"), schema=schema)
    garbage = select(log.c.ctid).where(is_consumed(log.c.change_xid, log_name, schema)).limit(limit)
    rows = func.array(garbage.scalar_subquery())
    return conn.execute(delete(log).where(log.c.ctid == any_(rows))).rowcount


def _collect_batches(conn: Connection, log_name: str, *, schema: str, limit: int) -> int:
    """Delete batches until these were ``limit`` changes; return how many there were in them."""
    xid, number = Column("change_xid", Xid8), Column(BATCHED_ROWS, Integer)
    log = table(batches_name(log_name), xid, number, column("ctid"), schema=schema)
    before = func.sum(number).over(order_by=(xid, log.c.ctid), rows=(None, -1))
    garbage = (
        select(log.c.ctid, before.label("before"))
        .where(is_consumed(xid, log_name, schema))
        .order_by(xid, log.c.ctid)
        .limit(limit)
        .subquery()
    )
    first = select(garbage.c.ctid).where(func.coalesce(garbage.c.before, 0) < limit)
    batches = func.array(first.scalar_subquery())
    gone = delete(log).where(log.c.ctid == any_(batches)).returning(number)
    return sum(conn.scalars(gone))


def is_consumed(xid: ColumnElement[Any], log_name: str, schema: str) -> ColumnElement[bool]:
    """Return whether all consumers of a log have consumed what ``xid`` did.

    That is what no stored snapshot lacks: before the least ``xmax``, and in progress in none. One
    index range, also while somebody has been writing for hours.
    """
    tables = change_log_tables(schema)

    def of_consumers(value: ColumnElement[Any]) -> Select[Any]:
        return (
            select(value)
            .select_from(tables.consumers)
            .join(tables.subscriptions, tables.subscriptions.c.consumer == tables.consumers.c.name)
            .where(tables.subscriptions.c.log_name == log_name)
        )

    xmax = func.pg_snapshot_xmax(tables.consumers.c.snapshot, type_=Xid8)
    in_progress = of_consumers(func.pg_snapshot_xip(tables.consumers.c.snapshot, type_=Xid8))
    # Without consumers nobody needs what can be seen: whoever registers later fills its target
    # from a later snapshot.
    least = func.coalesce(
        of_consumers(xmax).order_by(xmax).limit(1).scalar_subquery(),
        func.pg_snapshot_xmax(current_snapshot),
        type_=Xid8,
    )
    missing = func.array(in_progress.scalar_subquery(), type_=ARRAY(Xid8))
    return (xid < least) & (xid != all_(missing))


def require_own_snapshots(conn: Connection, schema: str) -> None:
    """Refuse to go on if a consumer's snapshot was taken in another database.

    Raises:
        ForeignSnapshotError: One was.
    """
    consumers = change_log_tables(schema).consumers
    identities = select(consumers.c.name, consumers.c.system_identifier, consumers.c.database_oid)
    for name, system_identifier, database_oid in conn.execute(identities).all():
        require_own_snapshot(conn, name, DatabaseIdentity(system_identifier, database_oid))
