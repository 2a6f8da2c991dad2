"""Let an index follow the change log of its table, or no more: with a migration, as the owner."""

from sqlalchemy import Connection, exists, select

from datapatterns.change_log import ChangeLog, change_log_tables
from datapatterns.change_log.capture_names import CaptureNames
from datapatterns.change_log.capture_statements import EVENTS
from datapatterns.change_log.consuming import advance_consumer, snapshot_without_own_changes
from datapatterns.errors import CaptureRefusedError, IndexDefinitionError
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.maintenance import Named, consumer_name
from datapatterns.index_table.statements import quoted

CONSUMER_KIND = "index_table"
"""What consumers that are index tables are."""


def capture_triggers(definition: IndexDefinition) -> tuple[str, ...]:
    """Return the names of the triggers that log the changes of the index's table."""
    # They are called alike on every table.
    names = CaptureNames(definition.schema, "")
    return tuple(names.trigger(event) for event in EVENTS)


def subscribe(conn: Connection, definition: IndexDefinition) -> None:
    """Log changes of what the index depends on, and keep them until it has taken them in.

    Waits for writers of the table unless all is in place already.

    Raises:
        IndexDefinitionError: Some changes of the table would be missed.
        MissingRightsError: The role doesn't own the table.
    """
    log = ChangeLog(definition.schema)
    try:
        log_name = log.capture(conn, definition.base, definition.used_columns)
    except CaptureRefusedError as refusal:
        raise IndexDefinitionError(definition.name, str(refusal)) from refusal
    log.register_consumer(conn, consumer_name(definition), CONSUMER_KIND, log_names=[log_name])


def begin_empty(conn: Connection, definition: IndexDefinition) -> None:
    """Count what has been taken in so far as right: nothing, of an index that is to be filled.

    Chunks of rows from before are read later than this, so what isn't in them is pending. A
    consumer that somebody removes and adds again hasn't been told that, and reads all anew.
    """
    snapshot = snapshot_without_own_changes(conn)
    advance_consumer(conn, consumer_name(definition), snapshot, schema=definition.schema)


def unsubscribe(conn: Connection, index: Named) -> None:
    """Keep no more changes for the index, and log none that nobody else consumes.

    What is captured for others stays as it is.
    """
    tables = change_log_tables(index.schema)
    captured, subscriptions = tables.captured, tables.subscriptions
    followed = conn.execute(
        select(captured.c.table_schema, captured.c.table_name, captured.c.log_name)
        .join(subscriptions, subscriptions.c.log_name == captured.c.log_name)
        .where(subscriptions.c.consumer == consumer_name(index))
    ).all()
    log = ChangeLog(index.schema)
    log.forget_consumer(conn, consumer_name(index))
    for table_schema, name, log_name in followed:
        is_consumed = select(exists().where(subscriptions.c.log_name == log_name))
        if not conn.scalar(is_consumed):
            log.release(conn, f"{quoted(table_schema)}.{quoted(name)}")
