"""What became of a transaction whose COMMIT was not answered.

After a lost answer the server knows more than the client: the id of the transaction, taken before
the COMMIT, is what to ask by. It costs two round trips and a flush of the log, so it is done only
when it is asked for.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import DataPatternsError, OutcomeUnknownError, ReadOnlyServerError

__all__ = ["Outcome", "find_unknown_outcome", "read_outcome", "wait_for_outcome"]

_UNANSWERED: Final = (
    "08",  # the connection broke; poolers say so in a message of their own
    "40003",  # statement_completion_unknown
    "57P01",  # the administrator, the crash of another session or a shutdown ended this one
    "57P02",
    "57P03",
)
"""SQLSTATEs, or their beginnings, that do not tell whether the COMMIT was carried out."""

_IDLE_TOO_LONG: Final = "25P03"
"""Fatal, and yet an answer: the session had ended before the COMMIT arrived."""

_IN_THE_FUTURE: Final = "22023"
"""How the server refuses an id that it has not given out."""

_POLL_SECONDS: Final = 0.05
_FLUSHES_MESSAGES_SINCE: Final = 170_000

_SERVER: Final = """
    concat_ws('/',
        (SELECT system_identifier FROM pg_control_system()),
        CASE WHEN NOT pg_is_in_recovery()
             THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
        CASE WHEN {durable} THEN 'durable' ELSE concat(
            extract(epoch FROM pg_postmaster_start_time()), '+',
            (SELECT extract(epoch FROM stats_reset) FROM pg_stat_bgwriter)) END)
"""
"""In which life of which server an id means one transaction.

The ids of transactions that left nothing in the log are given out again after a crash. So either
the id is flushed to the log at once, or it is good only until the next restart: of the whole
server, or of its sessions after one has crashed, which begins new statistics.
"""


class Outcome(Enum):
    """What became of a transaction."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    IN_PROGRESS = "in progress"
    """The server has not decided yet; ask again."""
    FORGOTTEN = "forgotten"
    """The server cannot know: it is another one, was restarted, or has forgotten."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What to ask by.

    Attributes:
        xid: The transaction's id.
        server: In which life of which server it means this transaction.
    """

    xid: int
    server: str


def is_unknown(error: BaseException) -> bool:
    """Return whether ``error``, raised by a COMMIT, leaves open if that was carried out.

    It does not if the server has said no, or if the COMMIT was never sent. It does if no answer
    came, for want of a connection or of patience.
    """
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    if isinstance(error, DataPatternsError):
        return isinstance(error, OutcomeUnknownError)  # others are raised before anything is sent
    if isinstance(error, psycopg.Error):
        return _is_unanswered(error)
    # SQLAlchemy refuses before anything is sent. Whatever else ends the wait, a time-out or a
    # cancellation, leaves the answer unread.
    return not isinstance(error, SQLAlchemyError)


def _is_unanswered(error: psycopg.Error) -> bool:
    if error.sqlstate is None:
        # Other classes are the driver's own refusals, before anything is sent.
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    if error.sqlstate.startswith(_UNANSWERED):
        return True
    # An ERROR says that the transaction was rolled back. A session that dies says nothing.
    severity = error.diag.severity_nonlocalized or error.diag.severity
    return severity in {"FATAL", "PANIC"} and error.sqlstate != _IDLE_TOO_LONG


def find_unknown_outcome(error: BaseException | None) -> OutcomeUnknownError | None:
    """Return the unknown outcome that ``error`` is or hides among its causes, if there is one.

    A cancellation or a time-out during a COMMIT stays what it is, and has the unknown outcome as
    its cause.
    """
    while error is not None:
        if isinstance(error, OutcomeUnknownError):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def take_trace(conn: Connection) -> Trace | None:
    """Return what to ask by later; None if the transaction has written nothing so far.

    From PostgreSQL 17 on this flushes the log.
    """
    row = conn.exec_driver_sql("SELECT pg_current_xact_id_if_assigned()::text").one()
    if row[0] is None:
        return None
    version = conn.connection.driver_connection.info.server_version  # type: ignore[union-attr]  # psycopg's
    durable = version >= _FLUSHES_MESSAGES_SINCE
    if durable:
        # With this record the log holds the id, and recovery gives it to nobody else.
        conn.exec_driver_sql("SELECT pg_logical_emit_message(false, 'datapatterns', '', true)")
    server = conn.scalar(text(f"SELECT {_SERVER.format(durable=durable)}"))
    return Trace(int(row[0]), str(server))


def read_outcome(conn: Connection, error: OutcomeUnknownError) -> Outcome:
    """Return what became of the transaction that ``error`` is about.

    ``FORGOTTEN`` also means that too much time has passed: the server keeps the fate of some 200
    million transactions at least, unless it is set to keep fewer.

    Args:
        conn: A connection to the same database, of a primary.
        error: From a transaction that was traced.

    Raises:
        ReadOnlyServerError: The server is a standby.
        ValueError: The transaction was not traced.
    """
    if error.xid is None or error.server is None:
        raise ValueError("the transaction was not traced; begin it with traced=True")
    durable = error.server.endswith("/durable")
    is_standby, server = conn.execute(
        text(f"SELECT pg_is_in_recovery(), {_SERVER.format(durable=durable)}")
    ).one()
    if is_standby:  # what it has not heard of yet would pass for aborted
        raise ReadOnlyServerError
    if server.split("/")[0] != error.server.split("/")[0]:
        return Outcome.FORGOTTEN
    outcome = _status_of(conn, error.xid)
    # Committed under this id, in another life: it may have been given to another transaction.
    # An id that was given out again is never that of a transaction that had committed.
    reused = outcome is Outcome.COMMITTED and server != error.server
    return Outcome.FORGOTTEN if reused else outcome


def _status_of(conn: Connection, xid: int) -> Outcome:
    try:
        with conn.begin_nested():
            status = conn.scalar(
                text("SELECT pg_xact_status(CAST(:xid AS xid8))"), {"xid": str(xid)}
            )
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _IN_THE_FUTURE:
            raise
        return Outcome.ABORTED  # the server was restored, or restarted, without any trace of it
    return Outcome.FORGOTTEN if status is None else Outcome(status)


def wait_for_outcome(
    engine: Engine,
    error: OutcomeUnknownError,
    *,
    timeout_seconds: float,
    clock: Clock = SYSTEM_CLOCK,
) -> Outcome:
    """Return what became of the transaction, as soon as it is decided.

    A server that has not noticed the lost connection goes on for a while, so it is asked again.

    Args:
        engine: The same database, on a primary.
        error: From a transaction that was traced.
        timeout_seconds: After this much the answer may be ``IN_PROGRESS``.
        clock: What waiting goes by.

    Raises:
        ReadOnlyServerError: The server is a standby.
        ValueError: The transaction was not traced.
    """
    deadline = clock.monotonic() + timeout_seconds
    while True:
        with engine.connect() as conn:
            outcome = read_outcome(conn, error)
        if outcome is not Outcome.IN_PROGRESS or clock.monotonic() >= deadline:
            return outcome
        clock.sleep(_POLL_SECONDS)
