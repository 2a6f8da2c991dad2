"""Create and drop what a view consists of."""

from collections.abc import Iterable
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, Select, Table, column, delete, func, insert, select, table
from sqlalchemy.schema import CreateTableAs, CreateView

from datapatterns.change_log import ChangeLog, change_log_tables
from datapatterns.change_log.inspecting import (
    SourceColumn,
    has_equality,
    inspect_columns,
    inspect_source,
    resolve_name,
)
from datapatterns.errors import ViewChangedError, ViewDefinitionError
from datapatterns.failpoints import failpoint
from datapatterns.materialized_view import counting
from datapatterns.materialized_view.algebra import CountingPlan, Output, OutputKind, table_of
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.determinism import Base, read_bases, require_determinism
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.records import ViewRecord, definition_hash, find_record
from datapatterns.materialized_view.schema import materialized_views
from datapatterns.materialized_view.strategy import Explanation, Incremental, Strategy
from datapatterns.sql.composing import execute

_NULLS_NOT_DISTINCT_SINCE = 15
_EXACT_TYPES = ("smallint", "integer", "bigint", "numeric")


def create_view(conn: Connection, view: ViewDefinition) -> None:
    """Create definition, capture, stored table, view and consumer; do nothing if all exists.

    Raises:
        CaptureRefusedError: Changes of one of its tables would be missed.
        ViewChangedError: It exists already, with another query.
        ViewDefinitionError: The server says why the query cannot be kept.
    """
    names = view.names
    if find_record(conn, names, view.query) is not None:
        return
    _require_free_names(conn, names)
    conn.execute(CreateView(view.query, names.definition, schema=names.schema))
    definition = _qualified(names, names.definition)
    require_determinism(conn, names.view, definition)
    bases = read_bases(conn, definition)
    if not bases:
        raise ViewDefinitionError(
            names.view, clause="reading no table", advice="its rows would never change"
        )
    explanation = _explain(conn, view)
    logs = _capture(conn, names, bases)
    failpoint("view.tables-captured")
    _create_stored(conn, view, explanation.strategy)
    _create_shown(conn, view, explanation.strategy)
    ChangeLog(names.schema).register_consumer(conn, names.consumer, "view", log_names=logs.values())
    conn.execute(
        insert(materialized_views(names.schema)).values(
            name=names.view,
            consumer=names.consumer,
            definition_hash=definition_hash(names.view, view.query),
            strategy=explanation.strategy.value,
            reason=explanation.reason,
            sources={
                base.full_name: {"log": logs[base.full_name], "columns": base.columns}
                for base in bases
            },
        )
    )


def drop_view(conn: Connection, names: ViewNames) -> None:
    """Drop the view and stop capturing what only it consumed; do nothing if there is none."""
    views, log = materialized_views(names.schema), ChangeLog(names.schema)
    sources = conn.scalar(select(views.c.sources).where(views.c.name == names.view))
    if sources is None:
        return
    # The last one is gone if a table was dropped with CASCADE.
    drop = sql.SQL("DROP VIEW {}; DROP TABLE {}; DROP VIEW IF EXISTS {}")
    parts = (names.view, names.stored, names.definition)
    execute(conn, drop.format(*(sql.Identifier(names.schema, part) for part in parts)))
    conn.execute(delete(views).where(views.c.name == names.view))
    log.forget_consumer(conn, names.consumer)
    subscriptions = change_log_tables(names.schema).subscriptions
    consumed = set(conn.scalars(select(subscriptions.c.log_name)))
    for source, facts in sources.items():
        if facts["log"] not in consumed:
            log.release(conn, source)


def stored_columns(view: ViewDefinition, strategy: Strategy) -> list[str]:
    """Return the names of all columns of the stored table."""
    if strategy is Strategy.COUNTING and view.plan is not None:
        return [*counting.key_names(view.plan), *counting.total_names(view.plan)]
    return [f"column_{number}" for number in range(len(view.columns))]


def fresh_rows(conn: Connection, view: ViewDefinition, strategy: Strategy) -> Select[Any]:
    """Return the query for all that should be stored."""
    if strategy is Strategy.COUNTING and view.plan is not None:
        return counting.state(view.plan)
    names = view.names
    found = [c.name for c in inspect_columns(conn, _qualified(names, names.definition))]
    definition = table(names.definition, *map(column, found), schema=names.schema)
    stored = stored_columns(view, strategy)
    labelled = (definition.c[name].label(new) for name, new in zip(found, stored, strict=True))
    return select(*labelled)


def log_names(
    conn: Connection, view: ViewDefinition, plan: CountingPlan, record: ViewRecord
) -> dict[Table, str]:
    """Return the log of each table of the plan.

    Raises:
        ViewChangedError: The query would read another table of that name, by ``search_path``.
    """
    logs: dict[Table, str] = {}
    for source in plan.tables:
        found = sql.Identifier(*resolve_name(conn, source)).as_string(None)
        if found not in record.sources:
            raise ViewChangedError(view.names.view)
        logs[source] = record.sources[found]
    return logs


def require_same_names(conn: Connection, view: ViewDefinition, record: ViewRecord) -> None:
    """Refuse a view of tables or columns that are called otherwise by now.

    The plain view follows what it was created from, by whatever name; the query in the code and
    the capture of changes go by names. Others may have taken them.

    Raises:
        ViewChangedError: One was renamed, or dropped with CASCADE.
    """
    bases = read_bases(conn, _qualified(view.names, view.names.definition))
    if {base.full_name: [*base.columns] for base in bases} != record.columns:
        raise ViewChangedError(view.names.view)


def columns_compared_as_text(
    conn: Connection, view: ViewDefinition, strategy: Strategy
) -> list[str]:
    """Return the stored columns whose equal values may differ, as 1.0 and 1.00 do."""
    if strategy is Strategy.COUNTING:
        return []
    names = view.names
    columns = inspect_columns(conn, _qualified(names, names.stored))
    return [column.name for column in columns if not column.equality_is_identity]


def _require_free_names(conn: Connection, names: ViewNames) -> None:
    for name in (names.view, names.stored, names.definition):
        if conn.scalar(select(func.to_regclass(_qualified(names, name)))) is not None:
            raise ViewDefinitionError(
                names.view,
                clause=f"{names.schema}.{name}, which exists already",
                advice="give the view another name",
            )


def _explain(conn: Connection, view: ViewDefinition) -> Explanation:
    """Return how the view is kept, now that the server tells what its columns really are."""
    if view.plan is None:
        return view.explanation
    obstacle = _server_obstacle(conn, view.plan)
    if obstacle is None:
        return view.explanation
    if isinstance(view.maintain, Incremental):
        raise ViewDefinitionError(
            view.names.view, clause=obstacle, advice="maintain it with Auto() or Full()"
        )
    return Explanation(Strategy.REBUILD, obstacle)


def _server_obstacle(conn: Connection, plan: CountingPlan) -> str | None:
    types: dict[tuple[Any, str], SourceColumn] = {}
    for source in plan.tables:
        for found in inspect_source(conn, source).columns:
            types[source, found.name] = found
    compared = {c for t in plan.tables for c in plan.columns_of(t)}
    zoned = (c.name for c in compared if _is_zoned(types.get((c.table, c.name))))
    if plan.compares_local_times and (name := next(zoned, None)) is not None:
        return f"{name} has a time zone, and a condition compares with a time that has none"
    knows = _has_nulls_not_distinct(conn)
    for key in plan.keys:
        key_column = types.get((table_of(key.table), key.name))
        if not knows and (key_column is None or key_column.is_nullable):
            return f"the key {key.name} can be NULL, and this server keeps such keys apart"
    for number, measure in enumerate(plan.measures):
        shown = {output.kind for output in plan.outputs if output.index == number}
        measured = types.get((table_of(measure.table), measure.name))
        exact = measured is not None and measured.type_sql.split("(")[0] in _EXACT_TYPES
        if shown & {OutputKind.SUM, OutputKind.AVG} and not exact:
            return f"{measure.name} is not of an exact type in the database"
    return None


def _is_zoned(column: SourceColumn | None) -> bool:
    return column is not None and "with time zone" in column.type_sql


def _capture(conn: Connection, names: ViewNames, bases: Iterable[Base]) -> dict[str, str]:
    """Capture all tables, always in the order of their names, so that two never deadlock."""
    log = ChangeLog(names.schema)
    return {base.full_name: log.capture(conn, base.full_name, base.columns) for base in bases}


def _create_stored(conn: Connection, view: ViewDefinition, strategy: Strategy) -> None:
    names = view.names
    empty = fresh_rows(conn, view, strategy).limit(0)
    conn.execute(CreateTableAs(empty, names.stored, schema=names.schema))
    stored = sql.Identifier(names.schema, names.stored)
    if strategy is Strategy.COUNTING and view.plan is not None:
        suffix = "NULLS NOT DISTINCT" if _has_nulls_not_distinct(conn) else ""
        keys = sql.SQL(", ").join(map(sql.Identifier, counting.key_names(view.plan)))
        index = sql.SQL("CREATE UNIQUE INDEX ON {} ({}) {}")
        execute(conn, index.format(stored, keys, sql.SQL(suffix)))
        return
    for number, name in enumerate(stored_columns(view, strategy)):
        if not has_equality(conn, stored, name):
            raise ViewDefinitionError(
                names.view,
                clause=f"column {view.columns[number]}, whose values cannot be compared",
                advice="jsonb can be, json cannot",
            )


def _create_shown(conn: Connection, view: ViewDefinition, strategy: Strategy) -> None:
    names = view.names
    labels = map(sql.Identifier, view.columns)
    types = inspect_columns(conn, _qualified(names, names.definition))
    if strategy is Strategy.COUNTING and view.plan is not None:
        shown = [
            _shown(view.plan, output, found.type_sql)
            for output, found in zip(view.plan.outputs, types, strict=True)
        ]
    else:
        shown = [sql.Identifier(name) for name in stored_columns(view, strategy)]
    selected = (
        sql.SQL("{} AS {}").format(part, label) for part, label in zip(shown, labels, strict=True)
    )
    create = sql.SQL("CREATE VIEW {} AS SELECT {} FROM {}")
    execute(
        conn,
        create.format(
            sql.Identifier(names.schema, names.view),
            sql.SQL(", ").join(selected),
            sql.Identifier(names.schema, names.stored),
        ),
    )


def _shown(plan: CountingPlan, output: Output, type_sql: str) -> sql.Composable:
    rows = sql.Identifier(f"measure_{output.index}_rows")
    total = sql.Identifier(f"measure_{output.index}_sum")
    written = sql.SQL(type_sql)  # PostgreSQL wrote it, quoted
    match output.kind:
        case OutputKind.KEY:
            return sql.Identifier(counting.key_names(plan)[output.index])
        case OutputKind.ROWS:
            return sql.Identifier(counting.ROWS)
        case OutputKind.COUNT:
            return rows
        case OutputKind.SUM | OutputKind.AVG:
            value = (
                sql.SQL("{} / {}").format(total, rows) if output.kind is OutputKind.AVG else total
            )
            return sql.SQL("(CASE WHEN {} > 0 THEN {} END)::{}").format(rows, value, written)


def _has_nulls_not_distinct(conn: Connection) -> bool:
    version = conn.dialect.server_version_info
    return version is not None and int(version[0]) >= _NULLS_NOT_DISTINCT_SINCE


def _qualified(names: ViewNames, relation: str) -> str:
    return sql.Identifier(names.schema, relation).as_string(None)
