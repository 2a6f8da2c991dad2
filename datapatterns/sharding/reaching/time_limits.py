"""A statement's deadline, kept by the server while it answers, and by us when it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from time import monotonic
from typing import Any, Final

from psycopg.errors import QueryCanceled
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Integer, Interval, Select, Text, cast, extract, func, select
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import ShardTimeoutError, ShardUnavailableError
from datapatterns.sharding.reaching.interrupting import Line

SILENCE_SECONDS: Final = 0.5
"""So long after its deadline a server that has not said so counts as one that is gone."""

_NAME: Final = "statement_timeout"


@contextmanager
def time_limit(conn: Connection, shard: str, seconds: float | None) -> Iterator[None]:
    """Bound what is executed on ``conn`` in the block; a stricter bound of the server's stays.

    The price: two round trips.

    Args:
        conn: A connection in a transaction.
        shard: Whose it is.
        seconds: None for no bound, and no price.

    Raises:
        ShardTimeoutError: It took longer. The transaction on the shard has failed then.
    """
    if seconds is None:
        yield
        return
    with silence_limit(conn, shard, seconds), _server_limit(conn, seconds):
        yield


@contextmanager
def silence_limit(conn: Connection, shard: str, seconds: float) -> Iterator[None]:
    """Do as `time_limit`, and leave it to us to notice; costs the server nothing.

    Raises:
        ShardTimeoutError: It took longer. The connection is broken then.
    """
    began, watch = monotonic(), _Watch(Line.of(conn))
    timer = Timer(seconds + SILENCE_SECONDS, watch.sever)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (DBAPIError, ShardUnavailableError) as error:
        cancelled = isinstance(getattr(error, "orig", None), QueryCanceled)
        if watch.severed or (cancelled and monotonic() - began >= seconds):
            raise ShardTimeoutError(shard, seconds) from error
        raise
    finally:
        timer.cancel()
        watch.end()


class _Watch:
    """Breaks a connection unless its work has ended."""

    def __init__(self, line: Line) -> None:
        self.severed = False
        self._line = line
        self._has_ended = False
        self._lock = Lock()

    def sever(self) -> None:
        with self._lock:
            if not self._has_ended:
                self.severed = True
                self._line.sever()

    def end(self) -> None:
        with self._lock:
            self._has_ended = True


@contextmanager
def _server_limit(conn: Connection, seconds: float) -> Iterator[None]:
    before, _ = conn.execute(_limited(round(seconds * 1000))).one()
    try:
        yield
    finally:
        # What has failed is rolled back, and the setting with it.
        if not conn.invalidated and _status(conn) == TransactionStatus.INTRANS:
            conn.execute(select(func.set_config(_NAME, before, True))).close()


def _limited(milliseconds: int) -> Select[Any]:
    """Return what sets the limit for a transaction, and tells what it was before."""
    before = func.current_setting(_NAME)
    stricter = func.nullif(cast(extract("epoch", cast(before, Interval)) * 1000, Integer), 0)
    limit = cast(func.least(stricter, milliseconds), Text)
    return select(before, func.set_config(_NAME, limit, True))


def _status(conn: Connection) -> TransactionStatus:
    driver: Any = conn.connection.driver_connection
    status: TransactionStatus = driver.info.transaction_status
    return status
