"""Begin anew in a restored database: without its log, and with all consumers."""

from typing import Final

from psycopg import sql
from sqlalchemy import Connection, delete, select, table, update

from datapatterns.change_log.capture_names import batches_name, rows_name
from datapatterns.change_log.consuming import (
    require_read_committed,
    require_unwritten,
    snapshot_without_own_changes,
)
from datapatterns.change_log.identity import database_identity, timeline
from datapatterns.change_log.locking import TableLock, by_table, hold_tables
from datapatterns.change_log.schema import change_log_tables

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
    captured = tables.captured.c
    listed = select(captured.table_schema, captured.table_name)
    for _ in ("until it is our turn", "what came until then"):
        sources = (sql.Identifier(*row).as_string(None) for row in conn.execute(listed))
        hold_tables(conn, dict.fromkeys(sources, TableLock.WRITERS), schema=schema)
    locked = select(captured.log_name).order_by(*by_table(schema)).with_for_update()
    log_names = conn.scalars(locked).all()
    # Consumers before subscriptions, as who refreshes has them.
    consumers = tables.consumers.c.name
    conn.execute(select(consumers).order_by(consumers).with_for_update())
    for log_name in log_names:
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
