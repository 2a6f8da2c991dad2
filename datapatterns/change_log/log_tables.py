"""The tables of a log, and the view of them: they get columns and lose them together."""

from collections.abc import Container, Iterable, Sequence

from psycopg import sql
from sqlalchemy import Connection, text

from datapatterns.change_log import capture_statements as statements
from datapatterns.change_log.batch_statements import (
    add_arrays,
    can_be_batched,
    create_batches,
    rename_shown,
    replace_log,
)
from datapatterns.change_log.capture_names import CaptureNames
from datapatterns.change_log.inspecting import (
    BATCHED_ROWS,
    LOG_COLUMNS,
    SourceColumn,
    SourceTable,
)
from datapatterns.errors import CapturedTableInUseError
from datapatterns.sql.composing import execute

_COLUMNS = text("""
SELECT a.attname, format_type(a.atttypid, a.atttypmod)
       || CASE WHEN a.attcollation <> t.typcollation
               THEN ' COLLATE ' || a.attcollation::regcollation::text ELSE '' END
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass(:relation) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
""")
# The view's own rule reads none of its columns.
_READERS = text("""
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid)
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(:log)
  AND a.attname = ANY (:columns)
ORDER BY 1
""")
_OWN_TYPES = text("""
SELECT count(*) > 0 FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass(:log) AND a.attnum > 0 AND a.attname <> ALL (:kept)
  AND t.typnamespace <> 'pg_catalog'::regnamespace
""")


def columns_of(conn: Connection, relation: sql.Identifier) -> dict[str, str]:
    """Return the columns of a part of a log and their types, in order; none without a log."""
    rows = conn.execute(_COLUMNS, {"relation": relation.as_string(None)})
    return {row[0]: row[1] for row in rows}


def is_fit(conn: Connection, names: CaptureNames, captured: Sequence[SourceColumn]) -> bool:
    """Return whether the log holds and shows all that is ``captured``."""
    wanted = {column.name for column in captured}
    logged = columns_of(conn, names.rows).keys()
    batched = columns_of(conn, names.batches).keys()
    return (
        wanted <= logged <= columns_of(conn, names.log).keys()
        and BATCHED_ROWS in batched
        and (wanted <= batched or not can_be_batched(captured))
    )


def fit_log(
    conn: Connection, names: CaptureNames, source: SourceTable, captured: Sequence[SourceColumn]
) -> None:
    """Create the log, what is gone of it, or the columns that it lacks of all ``captured``."""
    if is_fit(conn, names, captured):
        return
    logged = columns_of(conn, names.rows)
    _keep_readers_out(conn, names)
    if not logged:
        execute(conn, statements.create_rows(names))
    if not columns_of(conn, names.batches):
        execute(conn, create_batches(names))
    if rows := {c.name: c.logged_type_sql for c in captured if c.name not in logged}:
        execute(conn, statements.add_columns(names, rows))
    _fit_batches(conn, names, captured)
    _replace_view(conn, names)
    execute(conn, statements.comment_on_log(names, source))


def reduce_log(
    conn: Connection,
    names: CaptureNames,
    source: SourceTable,
    dropped: Sequence[str],
    kept: Sequence[SourceColumn],
) -> None:
    """Let the log lose columns. Its view shows NULL for them: it has to stay, for its readers.

    Raises:
        CapturedTableInUseError: A view of somebody's reads one of them.
    """
    log = names.log.as_string(None)
    readers = conn.scalars(_READERS, {"log": log, "columns": [*dropped]}).all()
    if readers:
        raise CapturedTableInUseError(source.full_name, [*readers])
    _keep_readers_out(conn, names)
    for number, name in enumerate(columns_of(conn, names.log)):
        if name in dropped:
            execute(conn, rename_shown(names, name, number))
    _fit_batches(conn, names, kept)
    _replace_view(conn, names, without=dropped)
    for table in (names.rows, names.batches):
        if gone := [name for name in columns_of(conn, table) if name in dropped]:
            execute(conn, statements.drop_columns(table, gone))


def holds_types(conn: Connection, names: CaptureNames, kept: Iterable[str]) -> bool:
    """Return whether the log's view keeps types from being dropped for other columns than these."""
    given = {"log": names.log.as_string(None), "kept": [*kept, *LOG_COLUMNS]}
    return bool(conn.scalar(_OWN_TYPES, given))


def create_successor(conn: Connection, names: CaptureNames, kept: Container[str]) -> str:
    """Create what may take the place of the log's view, with no other columns; return its name."""
    columns = {
        name: type_sql
        for name, type_sql in columns_of(conn, names.rows).items()
        if name in kept or name in LOG_COLUMNS
    }
    successor = f"{names.log_name}_next"
    log, batched = sql.Identifier(names.schema, successor), columns_of(conn, names.batches)
    execute(conn, replace_log(names, columns, logged=columns, batched=batched, log=log))
    return successor


def let_succeed(conn: Connection, names: CaptureNames, successor: str) -> None:
    """Let the successor, which others read by now, take the place of the log's view."""
    take = sql.SQL("DROP VIEW {}; ALTER VIEW {} RENAME TO {}").format(
        names.log, sql.Identifier(names.schema, successor), sql.Identifier(names.log_name)
    )
    execute(conn, take)


def _keep_readers_out(conn: Connection, names: CaptureNames) -> None:
    """Lock the log's view and then its tables, as readers do.

    One who had the view, and came for a table that was being changed, would wait for us while we
    wait for the view.
    """
    if columns_of(conn, names.log):
        execute(conn, sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(names.log))


def _fit_batches(conn: Connection, names: CaptureNames, captured: Sequence[SourceColumn]) -> None:
    """Let batches hold what is captured, if they are used."""
    batched = columns_of(conn, names.batches)
    arrays = {
        column.name: column.array_type_sql
        for column in captured
        if column.name not in batched and column.array_type_sql is not None
    }
    if arrays and can_be_batched(captured):
        execute(conn, add_arrays(names, arrays))


def _replace_view(conn: Connection, names: CaptureNames, *, without: Container[str] = ()) -> None:
    logged = columns_of(conn, names.rows)
    kept = {name: type_sql for name, type_sql in logged.items() if name not in without}
    columns = columns_of(conn, names.log) | kept
    batched = columns_of(conn, names.batches)
    execute(conn, replace_log(names, columns, logged=kept, batched=batched))
