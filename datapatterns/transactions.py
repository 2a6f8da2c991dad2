"""Transactions whose COMMIT either happened, or did not, or says that nobody knows.

SQLAlchemy's own ``begin()`` reports a COMMIT whose answer was lost as it reports a statement that
failed, and a COMMIT that the server turned into a ROLLBACK as a success.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import (
    AbortedTransactionError,
    CommitUnansweredError,
    IsolationLevelError,
    OutcomeUnknownError,
)
from datapatterns.outcomes import Trace, is_unknown, take_trace
from datapatterns.read_only import refuse_read_only, refused_by_server

__all__ = ["committing", "transaction", "watch_commits"]

A_TRANSACTION: Final = "a transaction"
"""What an error calls a transaction that nobody has named."""

_ONLY_LOOKING: Final[WeakSet[Connection]] = WeakSet()
"""Those whose COMMIT has nothing to commit."""

_LOST: Final = (TransactionStatus.INERROR, TransactionStatus.UNKNOWN)


@contextmanager
def transaction(
    engine: Engine,
    *,
    attempted: str = A_TRANSACTION,
    ids: Iterable[object] = (),
    traced: bool = False,
) -> Iterator[Connection]:
    """Open a transaction and commit it, like ``engine.begin()``; say so if nobody knows whether.

    Args:
        engine: Where.
        attempted: What it is for, in the words of an error message.
        ids: What makes a repetition recognisable, such as the ids of events; the error has them.
        traced: Take the transaction's id before the COMMIT, for `read_outcome`. It costs two
            round trips and a flush of the log.

    Raises:
        AbortedTransactionError: An error was caught in the block, so nothing can be committed.
        IsolationLevelError: The engine is in autocommit mode.
        OutcomeUnknownError: The COMMIT was sent and its answer was lost.
        ReadOnlyServerError: A statement was to write, and the server only allows reading.
    """
    pending = PendingCommit(attempted, tuple(ids), traced)
    with pending.explaining(), engine.connect() as conn, pending.committing(conn):
        yield conn


@contextmanager
def committing(
    conn: Connection,
    attempted: str = A_TRANSACTION,
    *,
    ids: Iterable[object] = (),
    traced: bool = False,
) -> Iterator[None]:
    """Do as `transaction` does, on a connection that is there already."""
    pending = PendingCommit(attempted, tuple(ids), traced)
    with pending.explaining(), pending.committing(conn):
        yield


@contextmanager
def resuming(conn: Connection, attempted: str) -> Iterator[None]:
    """Do as `committing` does, for work that finds out by itself how far it has got.

    Raises:
        AbortedTransactionError: An error was caught in the block, so nothing can be committed.
        CommitUnansweredError: The answer to the COMMIT was lost; do the same again.
    """
    try:
        with committing(conn, attempted):
            yield
    except OutcomeUnknownError as error:
        raise CommitUnansweredError(attempted, reason=error.reason) from error.__cause__


@contextmanager
def fresh_reads(engine: Engine) -> Iterator[Connection]:
    """Give a connection of the kind that reading the log needs, whatever the engine's default."""
    with engine.connect() as conn:
        yield conn.execution_options(isolation_level="READ COMMITTED")


@contextmanager
def reading(conn: Connection) -> Iterator[None]:
    """Begin a transaction that writes nothing; it ends by ROLLBACK, so no COMMIT can be lost."""
    with conn.begin() as begun:
        yield
        begun.rollback()


@contextmanager
def looking(conn: Connection) -> Iterator[None]:
    """Do as `reading` does, again and again: the driver keeps what it has prepared.

    It ends by COMMIT, as psycopg forgets all that at a ROLLBACK; if no answer comes, nothing is
    lost, and the error is one of the connection. So it is not for code of applications, which may
    write.
    """
    _ONLY_LOOKING.add(conn)
    try:
        with conn.begin():
            yield
    finally:
        _ONLY_LOOKING.discard(conn)


@dataclass(slots=True)
class PendingCommit:
    """What is known of a COMMIT before it is sent.

    Attributes:
        sent: Whether it may have been sent.
        trace: What to ask by; None also for a transaction that wrote nothing.
    """

    attempted: str
    ids: tuple[object, ...]
    traced: bool
    sent: bool = False
    trace: Trace | None = None

    def prepare(self, conn: Connection) -> None:
        """Make sure that there is something to commit; call it last.

        Raises:
            AbortedTransactionError: The server would answer the COMMIT with a ROLLBACK.
        """
        refuse_aborted(conn, self.attempted)
        if self.traced:
            self.trace = take_trace(conn)
        self.sent = True

    @contextmanager
    def committing(self, conn: Connection) -> Iterator[None]:
        """Begin a transaction and commit it."""
        with conn.begin():
            refuse_autocommit(conn)
            try:
                yield
            except DBAPIError as error:
                refused = refused_by_server(conn, error)
                if refused is None:
                    raise
                raise refused from error
            self.prepare(conn)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise what an error means if it hides an unknown outcome.

        Around the connection: what ends the wait while it goes back to its pool comes after the
        COMMIT. Whatever is no `Exception`, such as a cancellation, must stay what it is: then the
        unknown outcome is its cause.
        """
        try:
            yield
        except BaseException as error:
            self._explain(error)
            raise

    def _explain(self, error: BaseException) -> None:
        if not self.sent or not is_unknown(error):
            return
        if self.traced and self.trace is None:
            return  # nothing was written, so nothing can have been committed
        cause = error.__cause__ if isinstance(error, OutcomeUnknownError) else error
        unknown = _unknown(self.attempted, cause, self.ids, self.trace)
        if isinstance(error, Exception):
            raise unknown from cause
        error.__cause__ = unknown


def refuse_aborted(conn: Connection, attempted: str) -> None:
    """Refuse to commit what the server will roll back.

    Raises:
        AbortedTransactionError: A statement has failed, or the connection is lost.
    """
    driver: Any = None if conn.invalidated else conn.connection.driver_connection
    if driver is None or driver.info.transaction_status in _LOST:
        raise AbortedTransactionError(attempted)


def refuse_autocommit(conn: Connection) -> None:
    """Refuse a transaction that is none: each statement would stay, whatever comes after it.

    Raises:
        IsolationLevelError: The connection is in autocommit mode.
    """
    driver: Any = conn.connection.driver_connection
    if driver.autocommit:
        raise IsolationLevelError(found="autocommit", needed="read committed")


def watch_commits(engine: Engine) -> Engine:
    """Give what is committed on ``engine`` the errors of `transaction`; return the engine.

    That goes for ``engine.begin()``, for ``conn.commit()``, for two-phase commits and for
    sessions. A cancellation or a time-out stays what it is, and has the unknown outcome as its
    cause. Of an `AsyncEngine` watch the ``sync_engine``.

    A statement that a server refuses because it only allows reading raises `ReadOnlyServerError`,
    too; one in a transaction that was begun READ ONLY does not.
    """
    under_way: WeakSet[Connection] = WeakSet()
    _watch_two_phases(engine, under_way)
    event.listen(engine, "handle_error", refuse_read_only)

    @event.listens_for(engine, "begin")
    def begun(conn: Connection) -> None:
        under_way.discard(conn)

    @event.listens_for(engine, "commit")
    def about_to_commit(conn: Connection) -> None:
        _refuse_and_drop(conn)
        if conn not in _ONLY_LOOKING:
            under_way.add(conn)

    @event.listens_for(engine, "handle_error")
    def failed(context: ExceptionContext) -> None:
        conn = context.connection
        if conn is None or conn not in under_way:
            return
        under_way.discard(conn)
        error = context.original_exception
        if not is_unknown(error):
            return
        unknown = _unknown(A_TRANSACTION, context.sqlalchemy_exception or error)
        if isinstance(error, Exception):
            raise unknown from error
        error.__cause__ = unknown

    return engine


def _watch_two_phases(engine: Engine, under_way: WeakSet[Connection]) -> None:
    @event.listens_for(engine, "begin_twophase")
    def begun(conn: Connection, _xid: object) -> None:
        under_way.discard(conn)

    @event.listens_for(engine, "commit_twophase")
    def about_to_commit(conn: Connection, _xid: object, is_prepared: object) -> None:
        if not is_prepared:  # otherwise the server refuses what it could not prepare
            _refuse_and_drop(conn)
        under_way.add(conn)


def _refuse_and_drop(conn: Connection) -> None:
    try:
        refuse_aborted(conn, A_TRANSACTION)
    except AbortedTransactionError:
        # SQLAlchemy takes the transaction for ended, and would give the connection to others with
        # it; psycopg rolls no second phase back that had no first.
        conn.invalidate()
        raise


def _unknown(
    attempted: str,
    cause: BaseException | None,
    ids: tuple[object, ...] = (),
    trace: Trace | None = None,
) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        attempted,
        reason=_reason(cause),
        ids=ids,
        xid=None if trace is None else trace.xid,
        server=None if trace is None else trace.server,
    )


def _reason(cause: BaseException | None) -> str:
    # Of a driver's error the first line: further ones may quote rows.
    original = getattr(cause, "orig", None) or cause
    return next(iter(str(original).strip().splitlines()), "") or type(original).__name__
