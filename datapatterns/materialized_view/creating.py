"""Create and drop what a view consists of."""

from collections.abc import Iterable
from dataclasses import replace

from psycopg import sql
from sqlalchemy import Connection, Table, delete, func, insert, select

from datapatterns.change_log import ChangeLog
from datapatterns.change_log.capturing import capture_tables
from datapatterns.change_log.inspecting import has_equality, table_name
from datapatterns.change_log.locking import take_turn
from datapatterns.errors import ViewChangedError, ViewDefinitionError
from datapatterns.failpoints import failpoint
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.definition import ViewDefinition, not_incremental
from datapatterns.materialized_view.determinism import Base, read_bases, require_determinism
from datapatterns.materialized_view.locking import hold_versions
from datapatterns.materialized_view.maintenance import Logs
from datapatterns.materialized_view.meaning import as_written, note_settings
from datapatterns.materialized_view.names import ViewNames, view_names
from datapatterns.materialized_view.needs import has_nulls_not_distinct, unmet_need
from datapatterns.materialized_view.realtime import create_realtime
from datapatterns.materialized_view.records import ViewRecord, find_record, read_blueprint
from datapatterns.materialized_view.releasing import capture_no_more
from datapatterns.materialized_view.schema import materialized_views
from datapatterns.materialized_view.shown_types import as_defined
from datapatterns.materialized_view.stacking import (
    as_stored,
    find_bases,
    find_parents,
    record_parents,
    require_no_children,
)
from datapatterns.sql.composing import execute


def create_view(conn: Connection, view: ViewDefinition) -> None:
    """Create all that the view consists of; do nothing if it exists.

    It is kept by the first of its candidates that the server has no objection to.

    Raises:
        CaptureRefusedError: Changes of one of its tables would be missed.
        ViewChangedError: It exists already, with another query.
        ViewDefinitionError: The server says why the query cannot be kept.
    """
    if find_record(conn, view) is not None:
        return
    take_turn(conn, schema=view.names.schema)
    # Whoever waited may find that somebody else has created it.
    if find_record(conn, view) is None:
        with as_written(conn):
            _create(conn, view.names, [view.blueprint(candidate) for candidate in view.candidates])


def create_from_blueprint(conn: Connection, names: ViewNames, blueprint: Blueprint) -> None:
    """Create a view as it was written down.

    Raises:
        CaptureRefusedError: Changes of one of its tables would be missed.
        ViewDefinitionError: There is such a view, or the server says why this cannot be kept so.
    """
    with as_written(conn):
        _create(conn, names, [blueprint])


def create_definition(conn: Connection, names: ViewNames, blueprint: Blueprint) -> None:
    """Create the plain view of the query."""
    create = sql.SQL("CREATE VIEW {} ({}) AS {}").format(
        sql.Identifier(names.schema, names.definition),
        _listed(blueprint.columns),
        _written(blueprint.definition),
    )
    execute(conn, create)


def drop_view(conn: Connection, names: ViewNames) -> None:
    """Drop the view and stop capturing what only it consumed; do nothing if there is none.

    What was going to take its place goes, too.

    Raises:
        ViewInUseError: Other views are built upon it.
    """
    take_turn(conn, schema=names.schema)
    if names == names.live:
        hold_versions(conn, names)
        drop_view(conn, names.next)
    views, log = materialized_views(names.schema), ChangeLog(names.schema)
    sources = conn.scalar(select(views.c.sources).where(views.c.name == names.view))
    if sources is None:
        return
    require_no_children(conn, names)
    # Two of them are gone if a table was dropped with CASCADE, others if somebody has done that.
    drop = sql.SQL(
        "DROP VIEW IF EXISTS {}; DROP VIEW IF EXISTS {}; DROP TABLE IF EXISTS {};"
        " DROP VIEW IF EXISTS {}"
    )
    parts = (names.realtime, names.view, names.stored, names.definition)
    execute(conn, drop.format(*(sql.Identifier(names.schema, part) for part in parts)))
    conn.execute(delete(views).where(views.c.name == names.view))
    log.forget_consumer(conn, names.consumer)
    capture_no_more(conn, names.schema, {name: facts["log"] for name, facts in sources.items()})


def built_upon(parents: Iterable[str]) -> str | None:
    """Return what keeps changes of ``parents`` from being applied one by one; None without any.

    What a view stores is not what it shows, so its changes say only that there are some.
    """
    return next((f"it is built upon the view {parent}" for parent in sorted(parents)), None)


def find_logs(view: ViewDefinition, record: ViewRecord) -> Logs:
    """Return the logs of the view's tables.

    Raises:
        ViewChangedError: The query would read another table of that name, by ``search_path``.
    """
    by_table: dict[Table, str] = {}
    for source in record.maintenance.tables:
        found = record.names.get(table_name(source))
        log = found and record.logs.get(sql.Identifier(*found).as_string(None))
        if not log:
            raise ViewChangedError(view.names.view)
        by_table[source] = log
    names = [*record.logs.values()]
    return Logs(dict(sorted(by_table.items(), key=lambda item: names.index(item[1]))), names)


def require_same_names(conn: Connection, view: ViewDefinition, record: ViewRecord) -> None:
    """Refuse a view of tables or columns that are called otherwise by now.

    The plain view follows what it was created from, by whatever name; the query in the code and
    the capture of changes go by names. Others may have taken them.

    Raises:
        ViewChangedError: One was renamed, or dropped with CASCADE.
    """
    bases = as_stored(conn, view.names, record.bases)
    if {base.full_name: [*base.columns] for base in bases} != record.columns:
        raise ViewChangedError(view.names.view)


def create_shown(
    conn: Connection,
    names: ViewNames,
    blueprint: Blueprint,
    *,
    shown_as: ViewNames | None = None,
) -> None:
    """Create what readers read, or let that of ``shown_as`` show what this version does."""
    shown = shown_as or names
    create = sql.SQL("CREATE OR REPLACE VIEW {} AS SELECT {} FROM ({}) AS shown").format(
        sql.Identifier(shown.schema, shown.view),
        as_defined(conn, names, blueprint.columns, "shown"),
        _written(blueprint.shown),
    )
    execute(conn, create)


def _create(conn: Connection, names: ViewNames, candidates: Iterable[Blueprint]) -> None:
    # Before the query's tables are locked, as that does which reads them.
    take_turn(conn, schema=names.schema)
    _require_free_names(conn, names)
    (first, *_) = candidates = list(candidates)
    create_definition(conn, names, first)
    note_settings(conn, names)
    definition = _qualified(names, names.definition)
    require_determinism(conn, names.view, definition)
    bases = find_bases(conn, names, definition)
    if not bases:
        raise ViewDefinitionError(
            names.view, clause="reading no table", advice="its rows would never change"
        )
    parents = find_parents(conn, names, read_bases(conn, definition))
    _require_settled(conn, names, parents)
    blueprint = _first_without_objection(conn, names, candidates, parents)
    logs = _capture(conn, names, bases)
    failpoint("view.tables-captured")
    _create_stored(conn, names, blueprint)
    create_shown(conn, names, blueprint)
    create_realtime(conn, names, blueprint, logs)
    ChangeLog(names.schema).register_consumer(conn, names.consumer, "view", log_names=logs.values())
    conn.execute(
        insert(materialized_views(names.schema)).values(
            name=names.view,
            consumer=names.consumer,
            digest=blueprint.digest,
            strategy=blueprint.strategy.value,
            reason=blueprint.reason,
            sources={
                base.full_name: {"log": logs[base.full_name], "columns": base.columns}
                for base in bases
            },
            blueprint=blueprint.to_json(),
        )
    )
    record_parents(conn, names, parents)


def _first_without_objection(
    conn: Connection, names: ViewNames, candidates: list[Blueprint], parents: Iterable[str]
) -> Blueprint:
    upon = built_upon(parents)
    objection = upon
    for candidate in candidates:
        found = upon if candidate.sources and upon else unmet_need(conn, names, candidate)
        if found is None:
            return candidate if objection is None else replace(candidate, reason=objection)
        objection = found if objection is None else objection
    raise not_incremental(names.view, str(objection))


def _require_settled(conn: Connection, names: ViewNames, parents: Iterable[str]) -> None:
    """Refuse to build upon what another version is about to take the place of."""
    for parent in parents:
        if read_blueprint(conn, view_names(names.schema, parent).next) is not None:
            raise ViewDefinitionError(
                names.view,
                clause=f"reading {parent}, which another version is going to replace",
                advice="refresh that one until its new version is in its place",
            )


def _require_free_names(conn: Connection, names: ViewNames) -> None:
    for name in (names.view, names.stored, names.definition, names.realtime):
        if conn.scalar(select(func.to_regclass(_qualified(names, name)))) is not None:
            raise ViewDefinitionError(
                names.view,
                clause=f"{names.schema}.{name}, which exists already",
                advice="give the view another name",
            )


def _capture(conn: Connection, names: ViewNames, bases: Iterable[Base]) -> dict[str, str]:
    wanted = {base.full_name: base.columns for base in bases}
    return capture_tables(conn, wanted, schema=names.schema)


def _create_stored(conn: Connection, names: ViewNames, blueprint: Blueprint) -> None:
    stored = sql.Identifier(names.schema, names.stored)
    # Room for the next version of one row in five on its own page, so that no index is told of it;
    # a quarter more pages to read. With half the page free a refresh of a tenth of the groups is no
    # quicker (measured).
    create = sql.SQL(
        "CREATE TABLE {} WITH (fillfactor = 80) AS SELECT * FROM ({}) AS fresh LIMIT 0"
    )
    execute(conn, create.format(stored, _written(blueprint.fresh)))
    # It has no primary key, and a publication FOR ALL TABLES would keep rows without an identity
    # from being changed.
    execute(conn, sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(stored))
    for name in blueprint.stored:
        if not has_equality(conn, stored, name):
            raise ViewDefinitionError(
                names.view,
                clause=f"column {name}, whose values cannot be compared",
                advice="jsonb can be, json cannot",
            )
    if blueprint.key:
        index = sql.SQL("CREATE {unique} INDEX ON {stored} ({key}) {nulls}").format(
            unique=sql.SQL("UNIQUE" if blueprint.key_is_unique else ""),
            stored=stored,
            key=_listed(blueprint.key),
            nulls=sql.SQL(
                "NULLS NOT DISTINCT"
                if blueprint.key_is_unique and has_nulls_not_distinct(conn)
                else ""
            ),
        )
        execute(conn, index)


def _listed(names: Iterable[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _written(fragment: str) -> sql.Composable:
    return sql.SQL(fragment)  # SQLAlchemy or PostgreSQL wrote it, quoted


def _qualified(names: ViewNames, relation: str) -> str:
    return sql.Identifier(names.schema, relation).as_string(None)
