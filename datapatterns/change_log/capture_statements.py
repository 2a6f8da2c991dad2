"""The statements that install capture; nothing here talks to a server."""

from collections.abc import Iterable, Mapping, Sequence

from psycopg import sql

from datapatterns.change_log.batch_statements import (
    SINGLE_ROWS,
    as_written,
    can_be_batched,
    has_long_values,
    insert_batches,
)
from datapatterns.change_log.capture_names import CaptureNames
from datapatterns.change_log.inspecting import IMAGE_PREFIX, SourceColumn, SourceTable
from datapatterns.change_log.partition_statements import newcomers, truncated, unless_detached

_ADDED, _REMOVED = sql.SQL("1"), sql.SQL("-1")

# A column of such a name would be ambiguous; others' functions stay as they are.
_VARIABLES = frozenset({
    "found", "logged", "new", "old", "tg_argv", "tg_level", "tg_name", "tg_nargs", "tg_op",
    "tg_relid", "tg_relname", "tg_table_name", "tg_table_schema", "tg_when",
})  # fmt: skip
"""What PL/pgSQL and the function itself call its variables."""
_USE_COLUMN = sql.SQL("\n#variable_conflict use_column")

EVENTS = ("INSERT", "DELETE", "UPDATE", "TRUNCATE")

# Only the trigger function writes here, so no constraint looks at each row again. Where a
# publication is FOR ALL TABLES, PostgreSQL deletes nothing from a table without an identity.
_CREATE_ROWS = sql.SQL("""
CREATE TABLE {rows} (
    change_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    change_sign smallint NOT NULL,
    change_partition jsonb
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX ON {rows} (change_xid);
ALTER TABLE {rows} REPLICA IDENTITY FULL;
COMMENT ON TABLE {rows} IS 'Changes, each a row; read the view of the log';
""")
_COMMENT = sql.SQL("COMMENT ON VIEW {log} IS {comment}")

# Writers need no right on the log: the function runs as its owner. That is also why nobody else
# may put it on a table of theirs. An UPDATE logs what it took away and what it added; the rest
# of the rows, and those changed only in columns that nobody consumes, cancel out. The writer's id
# is the log's default: to ask for it in the statement costs a single row more.
_CREATE_FUNCTION = sql.SQL("""
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS {body};
REVOKE ALL ON FUNCTION {function}() FROM PUBLIC;
""")
_BODY = sql.SQL("""{use_column}
DECLARE
    logged bigint;
BEGIN{unless_detached}{newcomers}
    CASE TG_OP
    WHEN 'INSERT' THEN
        {insert}
    WHEN 'DELETE' THEN
        {delete}
    WHEN 'UPDATE' THEN
        {update}
    WHEN 'TRUNCATE' THEN
        INSERT INTO {rows} {truncated};
    END CASE;
    RETURN NULL;
END
""")
_ROWS = sql.SQL("INSERT INTO {rows} ({into}) SELECT {logged} FROM {relation};")
# Transition tables are read in one order always.
_ROWS_AND_BATCHES = sql.SQL("""{first}
        GET DIAGNOSTICS logged = ROW_COUNT;
        IF logged = {single_rows} THEN
            {rest}
        END IF;""")
_UNLESS_LONG = sql.SQL("""IF {has_long_values} THEN
                {rows}
            ELSE
                {batches}
            END IF;""")
_DIFFERENCE = sql.SQL("""
        SELECT {removed} FROM (
            SELECT {compared} FROM old_rows EXCEPT ALL SELECT {compared} FROM new_rows) AS q
        UNION ALL
        SELECT {added} FROM (
            SELECT {compared} FROM new_rows EXCEPT ALL SELECT {compared} FROM old_rows) AS q""")
_UPDATE = sql.SQL("INSERT INTO {rows} ({into}){difference};")
_UPDATE_MANY = sql.SQL("""IF {is_long} THEN
            {batches}
        ELSE
            {rows}
        END IF;""")
_CREATE_TRIGGER = sql.SQL("""
CREATE OR REPLACE TRIGGER {trigger} AFTER {event} ON {table} {transition}
FOR EACH STATEMENT EXECUTE FUNCTION {function}();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger};
""")
_TRANSITIONS = {
    "INSERT": sql.SQL("REFERENCING NEW TABLE AS new_rows"),
    "DELETE": sql.SQL("REFERENCING OLD TABLE AS old_rows"),
    "UPDATE": sql.SQL("REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows"),
    "TRUNCATE": sql.SQL(""),
}


def create_rows(names: CaptureNames) -> sql.Composable:
    """Return the statements that create the log's table of rows."""
    return _CREATE_ROWS.format(rows=names.rows)


def comment_on_log(names: CaptureNames, source: SourceTable) -> sql.Composable:
    """Return the statement that says what the log's view shows."""
    comment = sql.Literal(f"Changed rows of {source.full_name}; 1 added, -1 removed, 0 truncated")
    return _COMMENT.format(log=names.log, comment=comment)


def add_columns(names: CaptureNames, columns: Mapping[str, str]) -> sql.Composable:
    """Return the statement that lets rows of the log hold more columns, of these types."""
    added = [
        sql.SQL("ADD COLUMN {} ").format(sql.Identifier(name)) + as_written(type_sql)
        for name, type_sql in columns.items()
    ]
    return sql.SQL("ALTER TABLE {} ").format(names.rows) + sql.SQL(", ").join(added)


def drop_columns(table: sql.Identifier, columns: Iterable[str]) -> sql.Composable:
    """Return the statement that lets a table of the log hold fewer columns."""
    dropped = [sql.SQL("DROP COLUMN {}").format(sql.Identifier(column)) for column in columns]
    return sql.SQL("ALTER TABLE {} ").format(table) + sql.SQL(", ").join(dropped)


def replace_function(
    names: CaptureNames, source: SourceTable, columns: Sequence[SourceColumn]
) -> sql.Composable:
    """Return the statements that make the trigger function log ``columns``."""
    body = function_body(names, source, columns)
    return _CREATE_FUNCTION.format(function=names.function, body=sql.Literal(body))


def function_body(names: CaptureNames, source: SourceTable, columns: Sequence[SourceColumn]) -> str:
    """Return the body of the trigger function that logs ``columns``."""
    is_ambiguous = not _VARIABLES.isdisjoint(column.name for column in columns)
    body = _BODY.format(
        use_column=_USE_COLUMN if is_ambiguous else sql.SQL(""),
        unless_detached=unless_detached(source),
        newcomers=newcomers(names, source),
        rows=names.rows,
        insert=_whole(names, columns, _ADDED, "new_rows"),
        delete=_whole(names, columns, _REMOVED, "old_rows"),
        update=_update(names, columns) if columns else sql.SQL("NULL;  -- no column matters"),
        truncated=truncated(names, source),
    )
    return body.as_string(None)


def compare_rows(source: SourceTable, columns: Sequence[SourceColumn]) -> sql.Composable:
    """Return a statement that compares rows as the trigger function does, and returns none."""
    rows = sql.SQL("SELECT {} FROM {}").format(_compared(columns), source.identifier)
    return sql.SQL("{rows} EXCEPT ALL {rows} LIMIT 0").format(rows=rows)


def replace_guard(
    names: CaptureNames, source: SourceTable, columns: Sequence[SourceColumn]
) -> sql.Composable:
    """Return the statements that create the view which depends on the captured columns.

    A function body depends on nothing: without the view, dropping a captured column or changing
    its type would succeed, and then every write to the table would fail.
    """
    shown = [sql.SQL("1 AS guard"), *(_guarded(i, c) for i, c in enumerate(columns, start=1))]
    return sql.SQL("DROP VIEW IF EXISTS {v}; CREATE VIEW {v} AS SELECT {c} FROM {t}").format(
        v=names.guard, c=_listed(shown), t=source.identifier
    )


def give_guard(names: CaptureNames, owner: str) -> sql.Composable:
    """Return the statement that makes ``owner`` the owner of that view."""
    return sql.SQL("ALTER VIEW {} OWNER TO {}").format(names.guard, sql.Identifier(owner))


def create_trigger(names: CaptureNames, table: sql.Identifier, event: str) -> sql.Composable:
    """Return the statements that create the trigger for ``event`` on a table or partition.

    It fires always, so that what a replication role writes is captured, too.
    """
    return _CREATE_TRIGGER.format(
        trigger=sql.Identifier(names.trigger(event)),
        event=sql.SQL(event),  # one of EVENTS
        table=table,
        transition=_TRANSITIONS[event],
        function=names.function,
    )


def drop_capture(names: CaptureNames) -> sql.Composable:
    """Return the statements that remove triggers, function, guard and log."""
    return sql.SQL(
        "DROP FUNCTION IF EXISTS {function}, {move_function} CASCADE;"
        " DROP VIEW IF EXISTS {guard}, {log}; DROP TABLE IF EXISTS {rows}, {batches};"
    ).format(
        function=names.function,
        move_function=names.move_function,
        guard=names.guard,
        log=names.log,
        rows=names.rows,
        batches=names.batches,
    )


def _whole(
    names: CaptureNames, columns: Sequence[SourceColumn], sign: sql.SQL, relation: str
) -> sql.Composable:
    """Return what logs all rows of a transition table."""
    whole = sql.Identifier(relation)

    def insert(rows: sql.Composable) -> sql.Composable:
        logged = _logged(sign, columns)
        return _ROWS.format(rows=names.rows, into=_into(columns), logged=logged, relation=rows)

    if not can_be_batched(columns):
        return insert(whole)
    first = sql.SQL("{} LIMIT {}").format(whole, SINGLE_ROWS)
    beyond = sql.SQL("{} OFFSET {}").format(whole, SINGLE_ROWS)
    rest = insert_batches(names, columns, beyond, sign)
    has_long = has_long_values(columns, relation)
    if has_long is not None:
        rest = _UNLESS_LONG.format(has_long_values=has_long, rows=insert(beyond), batches=rest)
    return _ROWS_AND_BATCHES.format(first=insert(first), single_rows=SINGLE_ROWS, rest=rest)


def _update(names: CaptureNames, columns: Sequence[SourceColumn]) -> sql.Composable:
    difference = _DIFFERENCE.format(
        added=_logged(_ADDED, columns),
        removed=_logged(_REMOVED, columns),
        compared=_compared(columns),
    )
    rows = _UPDATE.format(rows=names.rows, into=_into(columns), difference=difference)
    if not can_be_batched(columns):
        return rows
    conditions = [sql.SQL("EXISTS (SELECT FROM new_rows OFFSET {})").format(SINGLE_ROWS)]
    conditions += [
        sql.SQL("NOT ") + has_long
        for relation in ("old_rows", "new_rows")
        if (has_long := has_long_values(columns, relation)) is not None
    ]
    signed = sql.SQL("({}) AS u (change_sign, {})").format(
        difference, _listed(sql.Identifier(column.name) for column in columns)
    )
    return _UPDATE_MANY.format(
        is_long=sql.SQL(" AND ").join(conditions),
        batches=insert_batches(names, columns, signed, None),
        rows=rows,
    )


def _compared(columns: Sequence[SourceColumn]) -> sql.Composable:
    identifiers = [sql.Identifier(column.name) for column in columns]
    images = [
        sql.SQL("{}::text AS {}").format(name, sql.Identifier(f"{IMAGE_PREFIX}{number}"))
        for number, (name, column) in enumerate(zip(identifiers, columns, strict=True))
        if not column.equality_is_identity
    ]
    return _listed([*identifiers, *images])


def _into(columns: Sequence[SourceColumn]) -> sql.Composable:
    return _listed(map(sql.Identifier, ("change_sign", *(column.name for column in columns))))


def _logged(sign: sql.SQL, columns: Sequence[SourceColumn]) -> sql.Composable:
    names = (sql.Identifier(column.name) for column in columns)
    return _listed([sign, *names])


def _guarded(number: int, column: SourceColumn) -> sql.Composable:
    name = sql.Identifier(f"column_{number}")
    return sql.SQL("{} AS {}").format(sql.Identifier(column.name), name)


def _listed(parts: Iterable[sql.Composable]) -> sql.Composable:
    return sql.SQL(", ").join(parts)
