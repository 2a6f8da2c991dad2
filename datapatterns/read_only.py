"""What it means that a statement may only read: of its transaction, or of the whole server.

In a failover the old primary comes back as a standby, or is fenced by a setting. Connections that
lead there still answer, so no pool notices; they have to go, or the next attempt meets them again.
"""

from typing import Any

from psycopg import errors as sqlstates
from sqlalchemy import Connection
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import ReadOnlyServerError


def refused_by_server(conn: Connection, error: DBAPIError) -> ReadOnlyServerError | None:
    """Return what ``error`` is called if the server only allows reading; None if it is another.

    Then the connection is given up, and so is what its pool keeps of earlier ones.
    """
    named = _refusal(error.orig, conn)
    if named is not None:
        # What SQLAlchemy does for a lost connection; nothing public does it without closing the
        # pool under those who have connections of it.
        conn.engine.pool._invalidate(conn.connection, error)  # noqa: SLF001
        conn.invalidate(error)
    return named


def refuse_read_only(context: ExceptionContext) -> None:
    """Do the same where an engine tells of an error, whoever has sent the statement.

    Raises:
        ReadOnlyServerError: The server only allows reading.
    """
    conn = context.connection
    named = None if conn is None else _refusal(context.original_exception, conn)
    if named is not None:
        context.is_disconnect = True
        raise named


def _refusal(error: BaseException | None, conn: Connection) -> ReadOnlyServerError | None:
    if not isinstance(error, sqlstates.ReadOnlySqlTransaction):
        return None
    driver: Any = None if conn.invalidated else conn.connection.driver_connection
    if driver is None:
        return ReadOnlyServerError()
    # The server reports both unasked: in a transaction that has failed it could not be asked. A
    # pooler may leave them out.
    standby, fenced = map(driver.info.parameter_status, _REPORTED)
    if driver.read_only or (standby, fenced) == ("off", "off"):
        return None  # only this transaction was begun so, and the driver's words say it
    if standby == "on":
        return ReadOnlyServerError("it is a standby")
    return ReadOnlyServerError("default_transaction_read_only is on" if fenced == "on" else None)


_REPORTED = ("in_hot_standby", "default_transaction_read_only")
