"""Capture the changes of a table: install, widen, release."""

import logging
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, Row, Table, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import ProgrammingError

from datapatterns.change_log import capture_statements as statements
from datapatterns.change_log.capture_names import CaptureNames, capture_names
from datapatterns.change_log.capture_statements import EVENTS
from datapatterns.change_log.comparing import require_comparable
from datapatterns.change_log.consuming import require_read_committed
from datapatterns.change_log.explaining import capture_obstacle, is_gone
from datapatterns.change_log.inspecting import (
    LOG_COLUMNS,
    SourceColumn,
    SourceTable,
    choose_columns,
    inspect_source,
    resolve_name,
)
from datapatterns.change_log.log_tables import columns_of, fit_log, is_fit, reduce_log
from datapatterns.change_log.partition_statements import create_move_trigger, replace_move_function
from datapatterns.change_log.schema import change_log_tables
from datapatterns.change_log.shapes import capture_shape, carrying_shape
from datapatterns.errors import (
    CapturedTableInUseError,
    CaptureRefusedError,
    MissingRightsError,
)
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
_OTHER_OWNER = text("""
SELECT pg_get_userbyid(relowner) FROM pg_catalog.pg_class
WHERE oid = to_regclass(:log) AND pg_get_userbyid(relowner) <> current_user
  AND current_setting('is_superuser')::boolean
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

    If all is in place, nothing is locked. Otherwise this waits for running writers of the table
    and its partitions and keeps new ones out until the transaction ends; set ``lock_timeout``
    where that matters. Call it again after a partition was created or attached: until then its
    consumers have to read everything anew each time.

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
    captured = change_log_tables(schema).captured
    allowed = conn.scalar(
        select(captured.c.allows_row_security).where(captured.c.log_name == names.log_name)
    )
    if allowed in {True, allow_row_security} and _is_complete(conn, source, names, wanted):
        return names.log_name
    require_read_committed(conn)
    with _explaining_rights():
        _capture(conn, table, wanted, schema=schema, allow_row_security=allow_row_security)
    return names.log_name


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
    shape = capture_shape(captured.c.log_name, schema=schema)
    wanted = select(captured).where(shape.is_(None))
    if consumer is not None:
        consumed = select(subscriptions.c.log_name).where(subscriptions.c.consumer == consumer)
        wanted = wanted.where(captured.c.log_name.in_(consumed))
    in_order = wanted.order_by(captured.c.table_schema, captured.c.table_name)
    mended = []
    for row in conn.execute(in_order).all():
        name = sql.Identifier(row.table_schema, row.table_name).as_string(None)
        if is_gone(conn, name):
            obstacle = capture_obstacle(conn, row.log_name, schema=schema)
            _logger.warning("%s", obstacle, extra={"change_log": row.log_name})
            continue
        allowed = row.allows_row_security
        capture(conn, name, [], schema=schema, allow_row_security=allowed)
        mended.append(f"{row.table_schema}.{row.table_name}")
    return mended


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


def narrow(conn: Connection, table: Table | str, columns: Iterable[str], *, schema: str) -> None:
    """Log changes of ``columns`` only, so that the table can lose others; nobody consumes those.

    If there are no others, nothing is locked. Otherwise this waits for running writers of the
    table, as `capture` does.

    Raises:
        CaptureRefusedError: There is no such table.
        CapturedTableInUseError: A view of somebody's reads another column of the log.
        MissingRightsError: There are others, and the role does not own the table and its log.
    """
    names = capture_names(schema, *resolve_name(conn, table))
    surplus = sorted(columns_of(conn, names.rows).keys() - {*columns, *LOG_COLUMNS})
    if not surplus:
        return
    source = inspect_source(conn, table, allow_row_security=True)
    lock = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(source.identifier)
    with _explaining_rights():
        execute(conn, lock)
        _narrow(conn, source, names, surplus, {*columns})


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
    with _explaining_rights():
        # First the table, as who captures it; then the row, as who collects; the log last.
        found = sql.Identifier(table_schema, name)
        if conn.scalar(select(func.to_regclass(found.as_string(None)))) is not None:
            execute(conn, sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(found))
        conn.execute(select(captured.c.log_name).where(is_it).with_for_update())
        # Who registered meanwhile held that row.
        _require_unconsumed(conn, names, f"{table_schema}.{name}")
        conn.execute(delete(captured).where(is_it))
        execute(conn, statements.drop_capture(names))


def _require_unconsumed(conn: Connection, names: CaptureNames, table: str) -> None:
    subscriptions = change_log_tables(names.schema).subscriptions.c
    consumers = conn.scalars(
        select(subscriptions.consumer)
        .where(subscriptions.log_name == names.log_name)
        .order_by(subscriptions.consumer)
    ).all()
    if consumers:
        raise CapturedTableInUseError(table, list(consumers))


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
    # Of a partitioned table this locks all partitions, too.
    lock = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(source.identifier)
    execute(conn, lock)
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


@contextmanager
def _explaining_rights() -> Iterator[None]:
    try:
        yield
    except ProgrammingError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            raise MissingRightsError(str(error.orig.diag.message_primary)) from error
        raise


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
    _replace_guard(conn, names, source, captured)
    _create_triggers(conn, source, names)


def _narrow(
    conn: Connection,
    source: SourceTable,
    names: CaptureNames,
    surplus: Sequence[str],
    wanted: Container[str],
) -> None:
    with carrying_shape(conn, names.log_name, schema=names.schema):
        kept = [column for column in source.columns if column.name in wanted]
        reduce_log(conn, names, source, surplus, kept)
        execute(conn, statements.replace_function(names, source, kept))
        _replace_guard(conn, names, source, kept)


def _replace_guard(
    conn: Connection, names: CaptureNames, source: SourceTable, columns: Sequence[SourceColumn]
) -> None:
    execute(conn, statements.replace_guard(names, source, columns))
    # It is the one part that is made anew; after a superuser's visit the owner has to go on.
    owner = conn.scalar(_OTHER_OWNER, {"log": names.log.as_string(None)})
    if owner is not None:
        execute(conn, statements.give_guard(names, owner))


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
