"""Delete what everybody has consumed; begin anew in another database."""

from psycopg import sql
from sqlalchemy import Column, Connection, any_, column, delete, func, select, table, update

from datapatterns.change_log.consuming import (
    current_snapshot,
    require_own_snapshot,
    require_read_committed,
    require_unwritten,
)
from datapatterns.change_log.identity import DatabaseIdentity, database_identity
from datapatterns.change_log.schema import Xid8, change_log_tables
from datapatterns.sql.composing import execute


def collect_garbage(conn: Connection, *, schema: str, limit: int = 10_000) -> int:
    """Delete logged changes that every consumer has consumed; return how many.

    Logs that somebody is registering for are left for the next time.

    Args:
        conn: A connection in a transaction. The caller commits.
        schema: Where the library's tables live.
        limit: How many rows to delete at most from each log; call again while it is reached.

    Raises:
        ForeignSnapshotError: A consumer was last advanced in another database.
        IsolationLevelError: The transaction is not READ COMMITTED.
    """
    require_read_committed(conn)
    tables = change_log_tables(schema)
    # Who registers holds these rows; once they are ours, a later statement sees all consumers.
    free = select(tables.captured.c.log_name).with_for_update(skip_locked=True)
    log_names = conn.scalars(free).all()
    _require_own_snapshots(conn, schema)
    deleted = 0
    for log_name in log_names:
        xmin = (
            select(func.pg_snapshot_xmin(tables.consumers.c.snapshot, type_=Xid8))
            .join(tables.subscriptions, tables.subscriptions.c.consumer == tables.consumers.c.name)
            .where(tables.subscriptions.c.log_name == log_name)
            .order_by(func.pg_snapshot_xmin(tables.consumers.c.snapshot))
            .limit(1)
            .scalar_subquery()
        )
        # Without consumers nobody needs what can be seen: whoever registers later fills its
        # target from a later snapshot.
        oldest = func.coalesce(xmin, func.pg_snapshot_xmin(current_snapshot), type_=Xid8)
        log = table(log_name, Column("change_xid", Xid8), column("ctid"), schema=schema)
        consumed = select(log.c.ctid).where(log.c.change_xid < oldest).limit(limit)
        rows = func.array(consumed.scalar_subquery())
        deleted += conn.execute(delete(log).where(log.c.ctid == any_(rows))).rowcount
    return deleted


def rebase(conn: Connection, *, schema: str) -> int:
    """Forget all logged changes and let every consumer begin anew; return how many begin.

    That is what a database needs that was restored from a dump: its log and its consumers'
    snapshots speak of transactions of another cluster, which cannot be told from its own. Until
    its target is filled again, no consumer counts as populated. This waits for the writers of
    all captured tables and keeps new ones out until the transaction ends.

    Raises:
        TransactionInUseError: The transaction has already written something.
    """
    require_unwritten(conn, "rebasing the change log")
    tables = change_log_tables(schema)
    captured = conn.execute(select(tables.captured).order_by(tables.captured.c.log_name)).all()
    for row in captured:
        source = sql.Identifier(row.table_schema, row.table_name)
        execute(conn, sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(source))
    for row in captured:
        # DELETE, for TRUNCATE would take the rows away from older snapshots, too.
        conn.execute(delete(table(row.log_name, schema=schema)))
    identity = database_identity(conn)
    return conn.execute(
        update(tables.consumers).values(
            snapshot=current_snapshot,
            populated=False,
            system_identifier=identity.system_identifier,
            database_oid=identity.database_oid,
        )
    ).rowcount


def _require_own_snapshots(conn: Connection, schema: str) -> None:
    consumers = change_log_tables(schema).consumers
    identities = select(consumers.c.name, consumers.c.system_identifier, consumers.c.database_oid)
    for name, system_identifier, database_oid in conn.execute(identities).all():
        require_own_snapshot(conn, name, DatabaseIdentity(system_identifier, database_oid))
