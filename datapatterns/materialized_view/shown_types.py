"""Show columns with the types that those of the view's query have."""

from collections.abc import Iterable

from psycopg import sql
from sqlalchemy import Connection

from datapatterns.change_log.inspecting import inspect_columns
from datapatterns.materialized_view.names import ViewNames


def as_defined(
    conn: Connection, names: ViewNames, columns: Iterable[str], relation: str
) -> sql.Composable:
    """Return ``columns`` of ``relation``, each cast to its type in the plain view of the query."""
    definition = sql.Identifier(names.schema, names.definition).as_string(None)
    types = {found.name: found.type_sql for found in inspect_columns(conn, definition)}
    cast = [
        # format_type() and regcollation write names quoted where they have to be.
        sql.SQL("{}::{} AS {}").format(
            sql.Identifier(relation, name), sql.SQL(types[name]), sql.Identifier(name)
        )
        for name in columns
    ]
    return sql.SQL(", ").join(cast)
