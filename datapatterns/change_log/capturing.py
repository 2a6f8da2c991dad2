"""Capture the changes of tables: install what that takes, and widen it."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, Row, Table, select, text
from sqlalchemy.dialects.postgresql import insert

from datapatterns.change_log import capture_statements as statements
from datapatterns.change_log.capture_names import CaptureNames, capture_names
from datapatterns.change_log.capture_statements import EVENTS
from datapatterns.change_log.comparing import require_comparable
from datapatterns.change_log.consuming import require_read_committed
from datapatterns.change_log.explaining import capture_obstacle, explaining_rights, is_gone
from datapatterns.change_log.guarding import guard
from datapatterns.change_log.inspecting import (
    SourceTable,
    choose_columns,
    inspect_source,
    locking_order,
    resolve_name,
)
from datapatterns.change_log.locking import TableLock, by_table, hold_tables, take_turn
from datapatterns.change_log.log_tables import columns_of, fit_log, is_fit
from datapatterns.change_log.partition_statements import create_move_trigger, replace_move_function
from datapatterns.change_log.schema import change_log_tables
from datapatterns.change_log.shapes import capture_shape, carrying_shape
from datapatterns.errors import CaptureRefusedError
from datapatterns.sql.composing import execute

_logger = logging.getLogger(__name__)

_TRIGGERS = text("""
SELECT t.tgrelid AS relation, t.tgname, p.proname AS function, n.nspname AS schema,
       t.tgenabled = 'A' AS fires_always,
       EXISTS (SELECT FROM pg_catalog.pg_trigger o
               JOIN pg_catalog.pg_class c ON c.oid = o.tgrelid AND c.relkind = 'p'
               WHERE o.tgfoid = t.tgfoid AND o.tgrelid <> t.tgrelid) AS is_of_a_former_parent
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE t.tgrelid = ANY (CAST(:relations AS oid[])) AND t.tgname = ANY (:names)
""")
# The columns that the condition of the trigger names, and where it fires always.
_MOVE_TRIGGERS = text("""
SELECT t.tgrelid AS relation, ARRAY (
    SELECT a.attname::text FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_attribute a ON a.attrelid = t.tgrelid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_trigger'::regclass AND d.objid = t.oid
      AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.tgrelid) AS columns
FROM pg_catalog.pg_trigger t
WHERE t.tgrelid = ANY (CAST(:relations AS oid[])) AND t.tgfoid = to_regproc(:function)
  AND t.tgname = :name AND t.tgenabled = 'A' AND t.tgtype = 19
""")
_BODY = text("SELECT prosrc FROM pg_catalog.pg_proc WHERE oid = to_regproc(:function)")


def capture(
    conn: Connection,
    table: Table | str,
    columns: Iterable[str],
    *,
    schema: str,
    allow_row_security: bool = False,
) -> str:
    """Log changes of ``columns`` from now on, beside those that are logged already.

    If all is in place, the table is not locked. Otherwise this waits for running writers of the
    table and its partitions and keeps new ones out until the transaction ends; set
    ``lock_timeout`` where that matters. Transactions that change what is captured take turns.
    Call it again after a partition was created or attached: until then its consumers have to
    read everything anew each time.

    Args:
        conn: A connection in a transaction, such as a migration's. The caller commits.
        table: The table, or its name as SQL writes it.
        columns: The columns that somebody consumes; others' changes are not logged.
        schema: Where the library's tables live.
        allow_row_security: Log rows past the table's row-level security, too.

    Returns:
        The name of the log in ``schema``.

    Raises:
        CaptureRefusedError: Some changes of this table would be missed.
        IsolationLevelError: Something has to be installed, and the transaction is not READ
            COMMITTED: it would not see what others installed while it waited.
        MissingRightsError: Something has to be installed, and the role does not own the table.
    """
    wanted = frozenset(columns)
    source = inspect_source(conn, table, allow_row_security=allow_row_security)
    names = capture_names(schema, source.schema, source.name)
    captured = change_log_tables(schema).captured.c
    allowed = select(captured.allows_row_security).where(captured.log_name == names.log_name)

    def is_complete() -> bool:
        found = conn.scalar(allowed)
        return found in {True, allow_row_security} and _is_complete(conn, source, names, wanted)

    # Only in our turn does it stay so.
    if is_complete() and take_turn(conn, schema=schema) and is_complete():
        return names.log_name
    require_read_committed(conn)
    with explaining_rights():
        _capture(conn, table, wanted, schema=schema, allow_row_security=allow_row_security)
    return names.log_name


def capture_tables(
    conn: Connection, wanted: Mapping[str, Iterable[str]], *, schema: str
) -> dict[str, str]:
    """Do as `capture` does with several tables, all of which are locked before any of their logs.

    Args:
        conn: A connection in a transaction, such as a migration's. The caller commits.
        wanted: The columns of each table, by its name as SQL writes it, with its schema.
        schema: Where the library's tables live.

    Returns:
        The log of each.
    """
    if len(wanted) > 1:
        lacking = [
            table
            for table, columns in wanted.items()
            if not is_captured(conn, table, columns, schema=schema)
        ]
        _hold(conn, lacking, schema)
    return {
        table: capture(conn, table, wanted[table], schema=schema)
        for table in sorted(wanted, key=locking_order)
    }


def recapture(conn: Connection, *, schema: str, consumer: str | None = None) -> list[str]:
    """Install what is missing at captured tables, new partitions above all; return which.

    Those that lack nothing are not locked. Whoever consumes their changes reads everything anew
    once more, and goes by the log from then on. One that was dropped keeps the others waiting
    for nothing: the log (`logging`) says that it is to be released.

    Args:
        conn: A connection in a transaction. The caller commits.
        schema: Where the library's tables live.
        consumer: Look only at the tables whose changes it consumes.

    Raises:
        CaptureRefusedError: A table has become one whose changes would be missed.
        MissingRightsError: The role does not own the table.
    """
    tables = change_log_tables(schema)
    captured, subscriptions = tables.captured, tables.subscriptions
    wanted = select(captured).order_by(*by_table(schema))
    if consumer is not None:
        consumed = select(subscriptions.c.log_name).where(subscriptions.c.consumer == consumer)
        wanted = wanted.where(captured.c.log_name.in_(consumed))
    lacking: dict[str, Row[Any]] = {}
    for row in conn.execute(wanted).all():
        name = sql.Identifier(row.table_schema, row.table_name).as_string(None)
        if is_gone(conn, name):
            obstacle = capture_obstacle(conn, row.log_name, schema=schema)
            _logger.warning("%s", obstacle, extra={"change_log": row.log_name})
        elif not is_captured(conn, name, [], schema=schema):
            lacking[name] = row
    _hold(conn, lacking, schema)
    for name, row in lacking.items():
        capture(conn, name, [], schema=schema, allow_row_security=row.allows_row_security)
    return [f"{row.table_schema}.{row.table_name}" for row in lacking.values()]


def is_captured(
    conn: Connection, table: Table | str, columns: Iterable[str], *, schema: str
) -> bool:
    """Return whether all is in place to log changes of ``columns``; lock nothing.

    Raises:
        CaptureRefusedError: Some changes of this table would be missed.
    """
    captured = change_log_tables(schema).captured
    names = capture_names(schema, *resolve_name(conn, table))
    allowed = conn.scalar(
        select(captured.c.allows_row_security).where(captured.c.log_name == names.log_name)
    )
    source = inspect_source(conn, table, allow_row_security=bool(allowed))
    return allowed is not None and _is_complete(conn, source, names, frozenset(columns))


def _hold(conn: Connection, tables: Collection[str], schema: str) -> None:
    if tables:
        require_read_committed(conn)
    with explaining_rights():
        hold_tables(conn, dict.fromkeys(tables, TableLock.WRITERS), schema=schema)


def _capture(
    conn: Connection,
    table: Table | str,
    wanted: frozenset[str],
    *,
    schema: str,
    allow_row_security: bool,
) -> None:
    source = inspect_source(conn, table, allow_row_security=allow_row_security)
    names = capture_names(schema, source.schema, source.name)
    captured = change_log_tables(schema).captured
    hold_tables(conn, {source.identifier.as_string(None): TableLock.WRITERS}, schema=schema)
    # Who waited for the lock may find that somebody else has changed what it saw.
    source = inspect_source(conn, table, allow_row_security=allow_row_security)
    _require_free(conn, source, names)
    with carrying_shape(conn, names.log_name, schema=schema):
        # First, as who collects has it: then nobody has the log while he waits for this row.
        conn.execute(
            insert(captured)
            .values(
                log_name=names.log_name,
                table_schema=source.schema,
                table_name=source.name,
                allows_row_security=allow_row_security,
            )
            .on_conflict_do_update(
                index_elements=[captured.c.log_name],
                set_={"allows_row_security": captured.c.allows_row_security | allow_row_security},
            )
        )
        _install(conn, source, names, wanted)


def _is_complete(
    conn: Connection, source: SourceTable, names: CaptureNames, wanted: frozenset[str]
) -> bool:
    logged = columns_of(conn, names.rows)
    if not wanted <= logged.keys():
        return False
    captured = [column for column in source.columns if column.name in logged]
    body = statements.function_body(names, source, captured)
    fit = all(logged[column.name] == column.logged_type_sql for column in captured)
    function = names.function.as_string(None)
    return (
        fit
        and is_fit(conn, names, captured)
        and conn.scalar(_BODY, {"function": function}) == body
        and conn.scalar(select(capture_shape(names.log_name, schema=names.schema))) is not None
    )


def _install(
    conn: Connection, source: SourceTable, names: CaptureNames, wanted: frozenset[str]
) -> None:
    choose_columns(conn, source, wanted)
    logged = columns_of(conn, names.rows)
    for column in source.columns:
        if column.name in logged and logged[column.name] != column.logged_type_sql:
            raise CaptureRefusedError(
                source.full_name,
                f"column {column.name!r} is {column.logged_type_sql}, and the log has one of that"
                f" name which is {logged[column.name]}; drop what consumes it, release the table,"
                " and capture it again",
            )
    # A column that was renamed stays in the log for who still reads it, but is not filled.
    captured = [column for column in source.columns if column.name in wanted | logged.keys()]
    require_comparable(conn, source, captured)
    fit_log(conn, names, source, captured)
    execute(conn, statements.replace_function(names, source, captured))
    guard(conn, names, source, captured)
    _create_triggers(conn, source, names)


def _create_triggers(conn: Connection, source: SourceTable, names: CaptureNames) -> None:
    working = {
        (trigger.relation, trigger.tgname)
        for trigger in _triggers(conn, source, names)
        if trigger.fires_always
        and sql.Identifier(trigger.schema, trigger.function) == names.function
    }
    for member in source.members:
        for event in EVENTS:
            if (member.oid, names.trigger(event)) not in working:
                execute(conn, statements.create_trigger(names, member.identifier, event))
    if source.is_partitioned:
        execute(conn, replace_move_function(names))
        # Left alone where it is right: each partition whose trigger is another one is read anew.
        if not _tells_moves(conn, source, names):
            execute(conn, create_move_trigger(names, source))


def _tells_moves(conn: Connection, source: SourceTable, names: CaptureNames) -> bool:
    """Return whether rows that move are told of; a new partition may go by further columns."""
    relations = [member.oid for member in source.members]
    function = names.move_function.as_string(None)
    wanted = {"relations": relations, "function": function, "name": names.move_trigger}
    found = {row.relation: row.columns for row in conn.execute(_MOVE_TRIGGERS, wanted)}
    return found.keys() == {*relations} and {*found[source.oid]} >= {*source.keys}


def _require_free(conn: Connection, source: SourceTable, names: CaptureNames) -> None:
    """Refuse a table that was captured under another name, or partitions captured on their own.

    What was once a partition of another captured table keeps triggers which do nothing; they are
    replaced.
    """
    captured = change_log_tables(names.schema).captured
    others = {
        (row.table_schema, row.table_name)
        for row in conn.execute(select(captured.c.table_schema, captured.c.table_name))
    }
    for member in source.members[1:]:
        if (member.schema, member.name) in others:
            raise CaptureRefusedError(
                source.full_name,
                f"its partition {member.schema}.{member.name} is captured on its own; drop what"
                " consumes that, and release it",
            )
    for trigger in _triggers(conn, source, names):
        function = sql.Identifier(trigger.schema, trigger.function)
        if function != names.function and not trigger.is_of_a_former_parent:
            raise CaptureRefusedError(
                source.full_name,
                f"it is captured by {trigger.schema}.{trigger.function}() already, under the name"
                " that it had then; drop what consumes it, drop that function with CASCADE, and"
                " capture it again",
            )


def _triggers(conn: Connection, source: SourceTable, names: CaptureNames) -> Sequence[Row[Any]]:
    relations = [member.oid for member in source.members]
    wanted = [names.trigger(event) for event in EVENTS]
    return conn.execute(_TRIGGERS, {"relations": relations, "names": wanted}).all()
