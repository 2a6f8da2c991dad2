"""What the database knows of a view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import Connection, func, select, update

from datapatterns.errors import ViewChangedError, ViewMissingError
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.maintenance import Maintenance
from datapatterns.materialized_view.meaning import other_settings, settings_now, settings_of
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.schema import materialized_views
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
    """

    explanation: Explanation
    maintenance: Maintenance
    logs: Mapping[str, str]
    columns: Mapping[str, Sequence[str]]
    last_duration_seconds: float | None
    settings: Mapping[str, str]


def find_record(conn: Connection, view: ViewDefinition) -> ViewRecord | None:
    """Return what is known of the view, or None if it was not created.

    Raises:
        ViewChangedError: It was created from another query.
    """
    views = materialized_views(view.names.schema)
    row = conn.execute(
        select(
            views.c.strategy,
            views.c.reason,
            views.c.digest,
            views.c.sources,
            views.c.duration_seconds,
            settings_of(view.names).label("noted"),
            settings_now().label("now"),
        ).where(views.c.name == view.names.view)
    ).one_or_none()
    if row is None:
        return None
    explanation = Explanation(Strategy(row.strategy), row.reason)
    maintenance = view.kept_by(explanation.strategy)
    if row.digest != view.blueprint(maintenance).digest:
        raise ViewChangedError(view.names.view)
    logs = {name: source["log"] for name, source in row.sources.items()}
    columns = {name: source["columns"] for name, source in row.sources.items()}
    settings = other_settings(row.noted, row.now, conn.dialect)
    return ViewRecord(explanation, maintenance, logs, columns, row.duration_seconds, settings)


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
    return {table: source["log"] for table, source in sources.items()}


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
    views = materialized_views(names.schema)
    conn.execute(update(views).where(views.c.name == names.view).values(duration_seconds=seconds))
