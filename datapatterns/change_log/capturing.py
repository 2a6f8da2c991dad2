"""Capture the changes of a table: install, widen, release."""

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, Row, Table, delete, select, text
from sqlalchemy.dialects.postgresql import insert

from datapatterns.change_log import capture_statements as statements
from datapatterns.change_log.capture_statements import EVENTS, CaptureNames, capture_names
from datapatterns.change_log.consuming import require_read_committed
from datapatterns.change_log.inspecting import (
    SourceTable,
    choose_columns,
    inspect_source,
    resolve_name,
)
from datapatterns.change_log.schema import change_log_tables
from datapatterns.errors import CapturedTableInUseError, CaptureRefusedError
from datapatterns.sql.composing import execute

_LOG_COLUMNS = text("""
SELECT a.attname, format_type(a.atttypid, a.atttypmod)
       || CASE WHEN a.attcollation <> t.typcollation
               THEN ' COLLATE ' || a.attcollation::regcollation::text ELSE '' END
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass(:log) AND a.attnum > 0 AND NOT a.attisdropped
""")
_TRIGGERS = text("""
SELECT t.tgname, t.tgenabled = 'A' AS fires_always, p.proname AS function, n.nspname AS schema,
       p.prosrc AS body
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE t.tgrelid = :oid AND t.tgname = ANY (:names)
""")


def capture(conn: Connection, table: Table | str, columns: Iterable[str], *, schema: str) -> str:
    """Log changes of ``columns`` from now on, beside those that are logged already.

    If all is in place, nothing is locked. Otherwise this waits for running writers of the table
    and keeps new ones out until the transaction ends; set ``lock_timeout`` where that matters.

    Args:
        conn: A connection in a transaction, such as a migration's. The caller commits.
        table: The table, or its name as SQL writes it.
        columns: The columns that somebody consumes; others' changes are not logged.
        schema: Where the library's tables live.

    Returns:
        The name of the log in ``schema``.

    Raises:
        CaptureRefusedError: Some changes of this table would be missed.
        IsolationLevelError: Something has to be installed, and the transaction is not READ
            COMMITTED: it would not see what others installed while it waited.
    """
    wanted = frozenset(columns)
    source = inspect_source(conn, table)
    names = capture_names(schema, source.schema, source.name)
    if _is_complete(conn, source, names, wanted):
        return names.log_name
    require_read_committed(conn)
    lock = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(source.identifier)
    execute(conn, lock)
    # Who waited for the lock may find that somebody else has changed what it saw.
    source = inspect_source(conn, table)
    _require_not_renamed(conn, source, names)
    _install(conn, source, names, wanted)
    return names.log_name


def release(conn: Connection, table: Table | str, *, schema: str) -> None:
    """Capture the changes of ``table`` no more; do nothing if they are not captured.

    Raises:
        CapturedTableInUseError: Somebody consumes them.
    """
    tables = change_log_tables(schema)
    table_schema, name = resolve_name(conn, table)
    names = capture_names(schema, table_schema, name)
    consumers = conn.scalars(
        select(tables.subscriptions.c.consumer)
        .where(tables.subscriptions.c.log_name == names.log_name)
        .order_by(tables.subscriptions.c.consumer)
    ).all()
    if consumers:
        raise CapturedTableInUseError(f"{table_schema}.{name}", list(consumers))
    execute(conn, statements.drop_capture(names))
    conn.execute(delete(tables.captured).where(tables.captured.c.log_name == names.log_name))


def _is_complete(
    conn: Connection, source: SourceTable, names: CaptureNames, wanted: frozenset[str]
) -> bool:
    logged = _logged_columns(conn, names)
    if not wanted <= logged.keys():
        return False
    captured = [column for column in source.columns if column.name in logged]
    body = statements.function_body(names, captured)
    fit = all(logged[column.name] == column.logged_type_sql for column in captured)
    working = _working_triggers(conn, source, names)
    return fit and [trigger.body for trigger in working] == [body] * len(EVENTS)


def _install(
    conn: Connection, source: SourceTable, names: CaptureNames, wanted: frozenset[str]
) -> None:
    chosen = choose_columns(conn, source, wanted)
    logged = _logged_columns(conn, names)
    if not logged:
        execute(conn, statements.create_log(names, source))
    for column in source.columns:
        if column.name in logged and logged[column.name] != column.logged_type_sql:
            raise CaptureRefusedError(
                source.full_name,
                f"column {column.name!r} is {column.logged_type_sql}, and the log has one of that"
                f" name which is {logged[column.name]}; drop what consumes it, release the table,"
                " and capture it again",
            )
    if added := [column for column in chosen if column.name not in logged]:
        execute(conn, statements.add_columns(names, added))
    # A column that was renamed stays in the log for who still reads it, but is not filled.
    captured = [column for column in source.columns if column.name in wanted | logged.keys()]
    execute(conn, statements.replace_function(names, captured))
    execute(conn, statements.replace_guard(names, source, captured))
    for event in EVENTS:
        working = {trigger.tgname for trigger in _working_triggers(conn, source, names)}
        if names.trigger(event) not in working:
            execute(conn, statements.create_trigger(names, source, event))
    conn.execute(
        insert(change_log_tables(names.schema).captured)
        .values(log_name=names.log_name, table_schema=source.schema, table_name=source.name)
        .on_conflict_do_nothing()
    )


def _require_not_renamed(conn: Connection, source: SourceTable, names: CaptureNames) -> None:
    for trigger in _triggers(conn, source, names):
        if sql.Identifier(trigger.schema, trigger.function) != names.function:
            raise CaptureRefusedError(
                source.full_name,
                f"it is captured by {trigger.schema}.{trigger.function}() already, under the name"
                " that it had then; drop what consumes it, drop that function with CASCADE, and"
                " capture it again",
            )


def _logged_columns(conn: Connection, names: CaptureNames) -> dict[str, str]:
    """Return the log's columns and their types; none if there is no log, some if there is one."""
    log = names.log.as_string(None)
    return {row[0]: row[1] for row in conn.execute(_LOG_COLUMNS, {"log": log})}


def _working_triggers(conn: Connection, source: SourceTable, names: CaptureNames) -> list[Row[Any]]:
    return [
        trigger
        for trigger in _triggers(conn, source, names)
        if trigger.fires_always
        and sql.Identifier(trigger.schema, trigger.function) == names.function
    ]


def _triggers(conn: Connection, source: SourceTable, names: CaptureNames) -> Sequence[Row[Any]]:
    wanted = [names.trigger(event) for event in EVENTS]
    return conn.execute(_TRIGGERS, {"oid": source.oid, "names": wanted}).all()
