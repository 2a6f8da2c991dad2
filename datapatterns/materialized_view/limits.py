"""How long the statements of one refresh may take, and wait for others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import sql
from psycopg.errors import LockNotAvailable, QueryCanceled
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from datapatterns.clock import Clock
from datapatterns.errors import ViewTimeoutError
from datapatterns.sql.composing import execute


@dataclass(frozen=True, slots=True)
class Limits:
    """What a refresh may take.

    Attributes:
        statement_seconds: For each statement; None for what the server says.
        lock_seconds: To wait for a lock; None for what the server says.
    """

    statement_seconds: float | None = None
    lock_seconds: float | None = None


@contextmanager
def limited(conn: Connection, view: str, limits: Limits, clock: Clock) -> Iterator[None]:
    """Limit all statements of the transaction from here on; no snapshot is taken for it.

    Raises:
        ViewTimeoutError: One that refreshes ``view`` took too long.
    """
    settings = {
        "statement_timeout": limits.statement_seconds,
        "lock_timeout": limits.lock_seconds,
    }
    for name, seconds in settings.items():
        if seconds is not None:
            milliseconds = max(1, round(1000 * seconds))  # 0 would be no limit
            setting = sql.SQL("SET LOCAL {} = {}")
            execute(conn, setting.format(sql.Identifier(name), sql.Literal(milliseconds)))
    began, seconds = clock.monotonic(), limits.statement_seconds
    try:
        yield
    except OperationalError as error:
        # A statement that somebody cancels fails in the same way, but earlier.
        over = seconds is not None and clock.monotonic() - began >= seconds
        if seconds is not None and over and isinstance(error.orig, QueryCanceled):
            raise ViewTimeoutError(view, timeout_seconds=seconds) from error
        raise


def is_busy(error: OperationalError) -> bool:
    """Return whether somebody else has held a lock for too long."""
    return isinstance(error.orig, LockNotAvailable)
