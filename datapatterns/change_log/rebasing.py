"""Begin anew in a restored database: without its log, and with all consumers."""

from typing import Final

from psycopg import sql
from sqlalchemy import Connection, delete, func, select, table, update

from datapatterns.change_log.capture_names import batches_name, rows_name
from datapatterns.change_log.consuming import (
    require_read_committed,
    require_unwritten,
    snapshot_without_own_changes,
)
from datapatterns.change_log.identity import database_identity, timeline
from datapatterns.change_log.schema import change_log_tables
from datapatterns.sql.composing import execute

RESTORED: Final = "the database was restored or copied"


def rebase(conn: Connection, *, schema: str) -> int:
    """Forget all logged changes and let every consumer begin anew; return how many begin.

    That is what a database needs that was restored from a dump: its log and its consumers'
    snapshots speak of transactions of another cluster, which cannot be told from its own. Until
    its target is filled again, no consumer counts as populated. This waits for the writers of
    all captured tables and keeps new ones out until the transaction ends; set ``lock_timeout``
    and do it again if that passes.

    Raises:
        IsolationLevelError: The transaction is not READ COMMITTED.
        TransactionInUseError: The transaction has already written something.
    """
    require_read_committed(conn)
    require_unwritten(conn, "rebasing the change log")
    tables = change_log_tables(schema)
    # First tables, by their names, then the rows that say what is captured: as who captures does.
    in_order = select(tables.captured).order_by(
        tables.captured.c.table_schema, tables.captured.c.table_name
    )
    for row in conn.execute(in_order).all():
        source = sql.Identifier(row.table_schema, row.table_name)
        if conn.scalar(select(func.to_regclass(source.as_string(None)))) is not None:
            execute(conn, sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(source))
    # Who is registering has a snapshot already, and needs what was logged since: it comes first,
    # and begins anew as well.
    captured = conn.scalars(select(tables.captured.c.log_name).with_for_update()).all()
    for log_name in captured:
        # DELETE, for TRUNCATE would take the rows away from older snapshots, too.
        for name in (rows_name(log_name), batches_name(log_name)):
            conn.execute(delete(table(name, schema=schema)))
    conn.execute(update(tables.subscriptions).values(shape=None))
    identity = database_identity(conn)
    return conn.execute(
        update(tables.consumers).values(
            snapshot=snapshot_without_own_changes(conn),
            populated=False,
            system_identifier=identity.system_identifier,
            database_oid=identity.database_oid,
            timeline=timeline,
            restart_reason=RESTORED,
        )
    ).rowcount
