"""Run statements that SQLAlchemy Core has no words for, with every name quoted."""

from typing import Any

from psycopg import sql
from sqlalchemy import Connection, CursorResult


def execute(conn: Connection, statement: sql.Composable) -> CursorResult[Any]:
    """Execute ``statement``, which has no parameters, in the caller's transaction.

    Without parameters ``%`` means itself, and one string may hold several statements.
    """
    return conn.exec_driver_sql(
        statement.as_string(None), execution_options={"no_parameters": True}
    )


def execute_written(conn: Connection, statements: str) -> None:
    """Execute what PostgreSQL itself has written, quoted, in this session."""
    conn.exec_driver_sql(statements, execution_options={"no_parameters": True})
