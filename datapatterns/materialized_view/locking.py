"""What is locked first by who writes a view's stored rows."""

from psycopg import sql
from psycopg.errors import UndefinedTable
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from datapatterns.errors import ViewMissingError
from datapatterns.materialized_view.names import ViewNames
from datapatterns.sql.composing import execute


def hold_stored(conn: Connection, names: ViewNames) -> None:
    """Lock the stored table, as writing it does, before anything else is locked.

    Always in this order, or somebody who has the table and waits for the consumer would meet
    somebody who has the consumer and waits for the table. This takes no snapshot, and refreshers
    do not exclude each other by it.

    Raises:
        ViewMissingError: The view was not created.
    """
    lock = sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE")
    try:
        execute(conn, lock.format(sql.Identifier(names.schema, names.stored)))
    except ProgrammingError as error:
        if isinstance(error.orig, UndefinedTable):
            raise ViewMissingError(names.view) from error
        raise
