"""Capture less of a table, or nothing any more."""

from collections.abc import Container, Iterable, Sequence

from psycopg import sql
from sqlalchemy import Connection, Table, delete, select

from datapatterns.change_log import capture_statements as statements
from datapatterns.change_log.capture_names import CaptureNames, capture_names
from datapatterns.change_log.explaining import explaining_rights
from datapatterns.change_log.guarding import guard
from datapatterns.change_log.inspecting import (
    LOG_COLUMNS,
    SourceTable,
    inspect_source,
    resolve_name,
)
from datapatterns.change_log.locking import TableLock, hold_tables
from datapatterns.change_log.log_tables import columns_of, reduce_log
from datapatterns.change_log.schema import change_log_tables
from datapatterns.change_log.shapes import carrying_shape
from datapatterns.errors import CapturedTableInUseError
from datapatterns.sql.composing import execute


def narrow(conn: Connection, table: Table | str, columns: Iterable[str], *, schema: str) -> None:
    """Log changes of ``columns`` only, so that the table can lose others; nobody consumes those.

    If there are no others, nothing is locked. Otherwise this waits for running writers of the
    table, as `capture` does.

    Raises:
        CaptureRefusedError: There is no such table.
        CapturedTableInUseError: A view of somebody's reads another column of the log.
        MissingRightsError: There are others, and the role does not own the table and its log.
    """
    wanted = {*columns}
    names = capture_names(schema, *resolve_name(conn, table))
    surplus = _surplus(conn, names, wanted)
    if not surplus:
        return
    source = inspect_source(conn, table, allow_row_security=True)
    with explaining_rights():
        hold_tables(conn, {source.identifier.as_string(None): TableLock.WRITERS}, schema=schema)
        surplus = _surplus(conn, names, wanted)
        _narrow(conn, source, names, surplus, wanted)


def is_narrow(conn: Connection, table: Table | str, columns: Iterable[str], *, schema: str) -> bool:
    """Return whether changes of no other columns than ``columns`` are logged."""
    names = capture_names(schema, *resolve_name(conn, table))
    return not _surplus(conn, names, {*columns})


def release(conn: Connection, table: Table | str, *, schema: str) -> None:
    """Capture the changes of ``table`` no more; do nothing if they are not captured.

    This waits for whoever uses the table and keeps others out until the transaction ends.

    Raises:
        CapturedTableInUseError: Somebody consumes them.
        MissingRightsError: The role does not own the log.
    """
    captured = change_log_tables(schema).captured
    table_schema, name = resolve_name(conn, table)
    names = capture_names(schema, table_schema, name)
    is_it = captured.c.log_name == names.log_name
    _require_unconsumed(conn, names, f"{table_schema}.{name}")
    if conn.scalar(select(captured.c.log_name).where(is_it)) is None:
        return
    found = sql.Identifier(table_schema, name).as_string(None)
    with explaining_rights():
        hold_tables(conn, {found: TableLock.EVERYBODY}, schema=schema)
        # Whose turn it was may have registered.
        _require_unconsumed(conn, names, f"{table_schema}.{name}")
        # Whoever collects has this row before the log.
        conn.execute(delete(captured).where(is_it))
        execute(conn, statements.drop_capture(names))


def _surplus(conn: Connection, names: CaptureNames, wanted: Container[str]) -> list[str]:
    logged = columns_of(conn, names.rows)
    return sorted(name for name in logged if name not in wanted and name not in LOG_COLUMNS)


def _narrow(
    conn: Connection,
    source: SourceTable,
    names: CaptureNames,
    surplus: Sequence[str],
    wanted: Container[str],
) -> None:
    captured = change_log_tables(names.schema).captured.c.log_name
    # Whoever collects has this row before the log.
    conn.execute(select(captured).where(captured == names.log_name).with_for_update())
    with carrying_shape(conn, names.log_name, schema=names.schema):
        kept = [column for column in source.columns if column.name in wanted]
        reduce_log(conn, names, source, surplus, kept)
        execute(conn, statements.replace_function(names, source, kept))
        guard(conn, names, source, kept)


def _require_unconsumed(conn: Connection, names: CaptureNames, table: str) -> None:
    subscriptions = change_log_tables(names.schema).subscriptions.c
    consumers = conn.scalars(
        select(subscriptions.consumer)
        .where(subscriptions.log_name == names.log_name)
        .order_by(subscriptions.consumer)
    ).all()
    if consumers:
        raise CapturedTableInUseError(table, list(consumers))
