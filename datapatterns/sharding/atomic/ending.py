"""How the parts of a transaction end, one by one."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from psycopg import Error as DriverError
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection

from datapatterns.sharding.fan_out import CancelledAfterwards
from datapatterns.sharding.reaching.tokens import NEVER

T = TypeVar("T")


def place_on(conn: Connection) -> str:
    """Return where the log of a server is, on a connection whose transaction has ended.

    Where that cannot be told, a place that only the primary has reached.
    """
    driver: Any = None if conn.invalidated else conn.connection.dbapi_connection
    try:
        driver.autocommit = True
        cursor = driver.cursor()
        cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
        (place,) = cursor.fetchone()
        cursor.close()
        driver.autocommit = False
    except (AttributeError, DriverError):
        conn.invalidate()
        return NEVER
    except BaseException:
        conn.invalidate()  # or whoever has it next commits each statement by itself
        raise
    return str(place)


def result_of(commit: Callable[[], T]) -> tuple[T, CancelledAfterwards | None]:
    """Return what comes of a commit, also if it was cancelled when it could not be undone."""
    try:
        return commit(), None
    except CancelledAfterwards as cancelled:
        return cast("T", cancelled.result), cancelled


def let_go(conn: Connection) -> None:
    """Give up what a transaction holds on a server, if that can be told of it."""
    if conn.invalidated:
        return
    driver: Any = conn.connection.driver_connection
    if driver.info.transaction_status in {TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN}:
        conn.invalidate()  # nobody knows what it is at
        return
    try:
        conn.connection.rollback()
    except DriverError:
        conn.invalidate()


def commit_reader(conn: Connection) -> None:
    """Commit where nothing was written."""
    # As a statement, so that SQLAlchemy's transaction stays as it is, and can be rolled back with
    # all others. Committed, because psycopg forgets at a ROLLBACK what it has prepared.
    conn.exec_driver_sql("COMMIT").close()
