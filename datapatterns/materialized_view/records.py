"""What the database knows of a view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from psycopg import sql
from sqlalchemy import (
    Connection,
    Double,
    Select,
    Text,
    Update,
    bindparam,
    func,
    select,
    update,
)

from datapatterns.change_log.inspecting import found_names, locking_order, table_name
from datapatterns.errors import ViewChangedError, ViewMissingError
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.determinism import Base, as_bases, bases_of
from datapatterns.materialized_view.maintenance import Maintenance
from datapatterns.materialized_view.meaning import other_settings, settings_now, settings_of
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.schema import materialized_views
from datapatterns.materialized_view.sizes import log_pages_of, rows_of
from datapatterns.materialized_view.strategy import Explanation, Strategy


@dataclass(frozen=True, slots=True)
class ViewRecord:
    """What was decided when the view was created.

    Attributes:
        explanation: How it is kept, and why.
        maintenance: What keeps it so.
        logs: The log of each table that it reads, by the table's name in SQL.
        columns: The columns that it reads of each, in the table's order.
        last_duration_seconds: How long the last refresh took.
        settings: Those that this session has otherwise than the one that created the view.
        bases: What the plain view of the query reads, by the names of today.
        names: What the tables of the query are called, with their schema, by the code's names.
        rows: How many its tables have together, by the planner's statistics; None without any.
        log_pages: How many the longest of the logs has.
    """

    explanation: Explanation
    maintenance: Maintenance
    logs: Mapping[str, str]
    columns: Mapping[str, Sequence[str]]
    last_duration_seconds: float | None
    settings: Mapping[str, str]
    bases: Sequence[Base]
    names: Mapping[str, tuple[str, str]]
    rows: float | None
    log_pages: int


def find_record(conn: Connection, view: ViewDefinition) -> ViewRecord | None:
    """Return what is known of the view, or None if it was not created.

    Raises:
        ViewChangedError: It was created from another query.
    """
    tables = {table_name(table) for kept in view.candidates for table in kept.tables}
    row = conn.execute(_facts(view.names, tuple(sorted(tables)))).one_or_none()
    if row is None:
        return None
    explanation = Explanation(Strategy(row.strategy), row.reason)
    maintenance = view.kept_by(explanation.strategy)
    if row.digest != view.blueprint(maintenance).digest:
        raise ViewChangedError(view.names.view)
    logs = _logs_of(row.sources)
    columns = {name: source["columns"] for name, source in row.sources.items()}
    settings = other_settings(row.noted, row.now, conn.dialect)
    return ViewRecord(
        explanation,
        maintenance,
        logs,
        columns,
        row.duration_seconds,
        settings,
        as_bases(row.bases),
        {name: (schema, table) for name, (schema, table) in row.names.items()},
        row.rows,
        row.log_pages or 0,
    )


@lru_cache(maxsize=512)
def _facts(names: ViewNames, tables: tuple[str, ...]) -> Select[Any]:
    """Return one statement for all that has to be known, since each costs a round trip."""
    views = materialized_views(names.schema)
    definition = sql.Identifier(names.schema, names.definition).as_string(None)
    return select(
        views.c.strategy,
        views.c.reason,
        views.c.digest,
        views.c.sources,
        views.c.duration_seconds,
        settings_of(names).label("noted"),
        settings_now().label("now"),
        bases_of(definition).label("bases"),
        found_names(tables).label("names"),
        rows_of(views.c.sources).label("rows"),
        log_pages_of(views.c.sources, schema=names.schema).label("log_pages"),
    ).where(views.c.name == names.view)


def read_record(conn: Connection, view: ViewDefinition) -> ViewRecord:
    """Return what is known of the view.

    Raises:
        ViewChangedError: It was created from another query.
        ViewMissingError: It was not created.
    """
    record = find_record(conn, view)
    if record is None:
        raise ViewMissingError(view.names.view)
    return record


def has_catalogue(conn: Connection, schema: str) -> bool:
    """Return whether the library's migrations have made the table of views."""
    table = sql.Identifier(schema, materialized_views(schema).name).as_string(None)
    return conn.scalar(select(func.to_regclass(table))) is not None


def read_blueprints(conn: Connection, schema: str) -> dict[str, Blueprint]:
    """Return what each view in ``schema`` consists of, in the order of their names."""
    views = materialized_views(schema)
    found = conn.execute(select(views.c.name, views.c.blueprint).order_by(views.c.name))
    return {row.name: Blueprint.from_json(row.blueprint) for row in found}


def read_logs(conn: Connection, names: ViewNames) -> dict[str, str]:
    """Return the log of each table that the view reads; none if it was not created.

    Tables are named with their schema, quoted.
    """
    views = materialized_views(names.schema)
    sources = conn.scalar(select(views.c.sources).where(views.c.name == names.view)) or {}
    return _logs_of(sources)


def _logs_of(sources: Mapping[str, Any]) -> dict[str, str]:
    # Views and who captures come for them in one order, so that they never wait for each other.
    return {table: sources[table]["log"] for table in sorted(sources, key=locking_order)}


def read_columns(conn: Connection, names: ViewNames) -> dict[str, tuple[str, ...]]:
    """Return the columns that the view reads of each table; none if it was not created.

    Tables are named with their schema, quoted.
    """
    views = materialized_views(names.schema)
    sources = conn.scalar(select(views.c.sources).where(views.c.name == names.view)) or {}
    return {table: tuple(source["columns"]) for table, source in sources.items()}


def read_blueprint(conn: Connection, names: ViewNames) -> Blueprint | None:
    """Return what the view consists of in the database; None if it was not created."""
    views = materialized_views(names.schema)
    found = conn.scalar(select(views.c.blueprint).where(views.c.name == names.view))
    return None if found is None else Blueprint.from_json(found)


def record_duration(conn: Connection, names: ViewNames, seconds: float) -> None:
    """Store how long a refresh took."""
    conn.execute(_recording(names.schema), {"wanted": names.view, "seconds": seconds})


@lru_cache
def _recording(schema: str) -> Update:
    views = materialized_views(schema)
    wanted, seconds = bindparam("wanted", type_=Text), bindparam("seconds", type_=Double)
    return update(views).where(views.c.name == wanted).values(duration_seconds=seconds)
