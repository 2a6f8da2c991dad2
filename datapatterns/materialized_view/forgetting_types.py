"""Let the types of columns go that a log shows no more.

PostgreSQL lets no view lose a column, so a log that gets narrower shows NULL for it, of its type;
and a type of the application's could not be dropped. Then a view without the column takes its
place.
"""

from collections.abc import Collection

from psycopg.errors import DependentObjectsStillExist
from sqlalchemy import Connection, select
from sqlalchemy.exc import InternalError

from datapatterns.change_log.capture_names import capture_names
from datapatterns.change_log.inspecting import LOG_COLUMNS, resolve_name
from datapatterns.change_log.log_tables import create_successor, holds_types, let_succeed
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.dependants import read_looks, run_all
from datapatterns.materialized_view.meaning import as_noted
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.realtime import create_realtime
from datapatterns.materialized_view.records import read_logs
from datapatterns.materialized_view.schema import materialized_views


def forget_types(conn: Connection, schema: str, table: str, kept: Collection[str]) -> None:
    """Make the log's view anew if it keeps types of other columns than ``kept``.

    This waits for readers of what its views give as of now. Whoever has put a view of their own
    upon it keeps it as it is.

    Args:
        conn: A connection in a transaction that holds the table against writers.
        schema: Where the library's tables live.
        table: Whose log it is, by its name in SQL, quoted and with its schema.
        kept: The columns that any view reads.
    """
    names = capture_names(schema, *resolve_name(conn, table))
    if not holds_types(conn, names, kept):
        return
    looks = read_looks(conn, names.log.as_string(None), [*kept, *LOG_COLUMNS])
    savepoint = conn.begin_nested()
    try:
        successor = create_successor(conn, names, kept)
        # First those that are read, then what they read, as readers lock it.
        _read_from(conn, schema, table, successor)
        let_succeed(conn, names, successor)
        run_all(conn, looks)
    except InternalError as error:
        if not isinstance(error.orig, DependentObjectsStillExist):
            raise
        savepoint.rollback()
    else:
        savepoint.commit()


def _read_from(conn: Connection, schema: str, table: str, log: str) -> None:
    """Let all views of the table read its changes from ``log``."""
    views = materialized_views(schema)
    reading = select(views.c.name, views.c.blueprint).where(views.c.sources.has_key(table))
    for name, blueprint in conn.execute(reading.order_by(views.c.name)).all():
        names = ViewNames(schema, name)
        logs = {**read_logs(conn, names), table: log}
        with as_noted(conn, names):
            create_realtime(conn, names, Blueprint.from_json(blueprint), logs)
