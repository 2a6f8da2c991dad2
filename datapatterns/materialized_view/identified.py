"""Which stored columns have to be the same as the query's, not only equal to them."""

from psycopg import sql
from sqlalchemy import Connection

from datapatterns.change_log.inspecting import inspect_columns
from datapatterns.materialized_view.maintenance import Maintenance
from datapatterns.materialized_view.names import ViewNames


def columns_compared_as_text(
    conn: Connection, names: ViewNames, maintenance: Maintenance
) -> list[str]:
    """Return the stored columns whose equal values may differ, as 1.0 and 1.00 do, and must not."""
    if not (identified := maintenance.identified):
        return []
    stored = sql.Identifier(names.schema, names.stored).as_string(None)
    columns = inspect_columns(conn, stored)
    return [c.name for c in columns if c.name in identified and not c.equality_is_identity]
