"""How far a view is behind its tables."""

from collections.abc import Callable, Iterable

from sqlalchemy import Column, ColumnElement, Connection, func, literal, select, table

from datapatterns.change_log import Xid, Xid8, change_log_tables, pending_for
from datapatterns.change_log.consuming import require_own_snapshot
from datapatterns.change_log.identity import DatabaseIdentity
from datapatterns.errors import ViewMissingError
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.records import read_record
from datapatterns.materialized_view.reports import Freshness


def pending_rows(
    schema: str,
    log_names: Iterable[str],
    is_pending: Callable[[ColumnElement[Xid]], ColumnElement[bool]],
    *,
    limit: int | None = None,
) -> ColumnElement[int]:
    """Return an expression that counts pending changes, at most ``limit`` in each log."""
    total: ColumnElement[int] = literal(0)
    for log_name in log_names:
        log = table(log_name, Column("change_xid", Xid8), schema=schema)
        rows = select(log.c.change_xid).where(is_pending(log.c.change_xid)).limit(limit)
        counted = select(func.count()).select_from(rows.subquery()).scalar_subquery()
        total = total + counted
    return total


def read_freshness(conn: Connection, view: ViewDefinition, *, limit: int) -> Freshness:
    """Return how far the view is behind, in the transaction's snapshot.

    Raises:
        ForeignSnapshotError: The view was last refreshed in another database.
        ViewChangedError: The view was created from another query.
        ViewMissingError: The view was not created.
    """
    names = view.names
    record = read_record(conn, names, view.query)
    consumers = change_log_tables(names.schema).consumers
    pending = pending_rows(
        names.schema,
        record.sources.values(),
        lambda xid: pending_for(names.consumer, xid, schema=names.schema),
        limit=limit,
    )
    age = func.extract("epoch", func.statement_timestamp() - consumers.c.advanced_at)
    row = conn.execute(
        select(
            consumers.c.populated,
            pending.label("pending"),
            func.coalesce(age, 0).label("age"),
            consumers.c.advanced_at,
            consumers.c.system_identifier,
            consumers.c.database_oid,
        ).where(consumers.c.name == names.consumer)
    ).one_or_none()
    if row is None:
        raise ViewMissingError(names.view)
    identity = DatabaseIdentity(row.system_identifier, row.database_oid)
    require_own_snapshot(conn, names.consumer, identity)
    return Freshness(
        populated=row.populated,
        pending_rows=row.pending,
        stale_seconds=float(row.age) if row.pending else 0.0,
        refreshed_at=row.advanced_at,
        last_duration_seconds=record.last_duration_seconds,
    )
