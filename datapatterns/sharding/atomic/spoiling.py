"""Work that has been done by half must not be committed, even if its error is caught."""

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


def refuse_commit(conn: Connection) -> None:
    """Let the server refuse to commit, unless the transaction or its savepoint is rolled back."""
    try:
        conn.exec_driver_sql("SELECT 1 / 0")
    except DBAPIError:
        return
