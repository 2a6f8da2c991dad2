"""How far a view is behind its tables."""

from sqlalchemy import Connection, select

from datapatterns.change_log import capture_changed, change_log_tables, pending_for
from datapatterns.change_log.consuming import require_own_snapshot
from datapatterns.change_log.identity import DatabaseIdentity
from datapatterns.change_log.schema import statement_time
from datapatterns.errors import ViewMissingError
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.looking import look
from datapatterns.materialized_view.pending_changes import count_pending
from datapatterns.materialized_view.records import read_record
from datapatterns.materialized_view.reports import Freshness
from datapatterns.materialized_view.stacking import count_pending_below, read_as_of
from datapatterns.materialized_view.versions import version_at_hand


def read_freshness(conn: Connection, view: ViewDefinition, *, limit: int) -> Freshness:
    """Return how far the view is behind, or that version of it which is meant.

    Raises:
        ForeignSnapshotError: The view was last refreshed in another database.
        SnapshotOutdatedError: It went after the transaction's snapshot, above READ COMMITTED.
        ViewChangedError: The view was created from another query, or a part of it is gone.
        ViewMissingError: The view was not created.
    """
    return look(conn, view.names, lambda: _read_freshness(conn, version_at_hand(conn, view), limit))


def _read_freshness(conn: Connection, view: ViewDefinition, limit: int) -> Freshness:
    names = view.names
    record = read_record(conn, view)
    consumers = change_log_tables(names.schema).consumers
    pending = count_pending(
        names.schema,
        record.logs.values(),
        lambda xid: pending_for(names.consumer, xid, schema=names.schema),
        limit=limit,
    )
    row = conn.execute(
        select(
            consumers.c.populated,
            pending.label("pending"),
            statement_time.label("now"),
            consumers.c.advanced_at,
            consumers.c.system_identifier,
            consumers.c.database_oid,
            capture_changed(names.consumer, schema=names.schema).label("changed"),
        ).where(consumers.c.name == names.consumer)
    ).one_or_none()
    if row is None:
        raise ViewMissingError(names.view)
    identity = DatabaseIdentity(row.system_identifier, row.database_oid)
    require_own_snapshot(conn, names.consumer, identity)
    below = count_pending_below(conn, names, limit=limit)
    state = read_as_of(conn, names)
    as_of = row.advanced_at if state is None else state.at
    age = 0.0 if as_of is None else (row.now - as_of).total_seconds()
    return Freshness(
        populated=row.populated,
        pending_rows=row.pending + below,
        stale_seconds=age if row.pending or below or row.changed else 0.0,
        refreshed_at=row.advanced_at,
        as_of=as_of,
        last_duration_seconds=record.last_duration_seconds,
        has_to_be_rebuilt=row.changed,
    )
