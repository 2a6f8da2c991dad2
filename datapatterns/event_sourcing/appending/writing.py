"""One append as a transaction of its own: what is sent, and what an error of it means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import errors as sqlstates
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from datapatterns.errors import OutcomeUnknownError, ServerUnavailableError
from datapatterns.event_sourcing.appending.appending import (
    Guard,
    StreamBatch,
    answered,
    append_call,
    identified,
)
from datapatterns.event_sourcing.appending.batching import guard
from datapatterns.event_sourcing.appending.tag_query import Condition
from datapatterns.event_sourcing.content.encoding import encode_batch
from datapatterns.event_sourcing.events import Appended, Expected, StreamId
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.outcomes import is_unknown
from datapatterns.sql.server import named_error

SERVER: Final = "the database"
"""What an error calls a server whose address it does not know."""

_WAIT_SECONDS: Final = 0.05
_WAIT_SECONDS_MAX: Final = 1.0
_ROLLED_BACK: Final = (sqlstates.DeadlockDetected, sqlstates.SerializationFailure)
_FENCED: Final = (sqlstates.ReadOnlySqlTransaction,)
"""The server is the primary no more, if it was; it may answer all the same."""
_FORGOTTEN: Final = (sqlstates.InvalidSqlStatementName,)
"""The session has no longer what the driver has prepared: a pooler has discarded it or changed."""


@dataclass(slots=True)
class Writing:
    """An append that is sent until its answer has arrived, always with the same ids.

    So it takes place once: by an exact version it recognises itself, otherwise by its first id.

    Attributes:
        batch: What is appended.
        guard: The condition, if there is one.
        schema: Where.
        deadline: When to give up, on a monotonic clock.
        is_outgoing: The events are as the database stores them.
        attempts: How often it has failed.
        unknown: The latest error after which it may have taken place.
    """

    batch: StreamBatch
    guard: Guard | None
    schema: str
    deadline: float
    is_outgoing: bool = False
    attempts: int = 0
    unknown: BaseException | None = None

    def send_as(self, batch: StreamBatch) -> None:
        """Go on with ``batch``, which is as the database stores it."""
        self.batch, self.is_outgoing = batch, True

    def call(self) -> tuple[str, dict[str, Any]]:
        """Return the statement and its parameters."""
        return append_call(self.batch, schema=self.schema, guard=self.guard)

    def answer(self, row: Sequence[Any]) -> Appended:
        """Return what the server has done.

        Raises: as `EventStore.append`.
        """
        outcome, version, position = row
        return answered(self.batch, outcome, version, position)

    def failed(self, error: BaseException, *, sent: bool, now: float) -> float:
        """Return for how many seconds to wait before it is sent again.

        Args:
            error: What came instead of an answer.
            sent: Whether the statement may have been sent.
            now: On the clock of the deadline.

        Raises:
            OutcomeUnknownError: It may have taken place, and there is no time left to find out.
            ServerUnavailableError: It was not sent, and there is no time left.
            BaseException: ``error``, if it says that it was refused, or is none of the database;
                unless an attempt before may have taken place, of which it says nothing.
        """
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        # In a failover the old primary may answer first, and while the first attempt still goes on
        # the next may wait too long for its lock: neither says what became of the first.
        may_pass = self.unknown is not None or _may_pass(cause, sent=sent)
        if sent and is_unknown(cause):
            self.unknown = cause
        if not isinstance(cause, Exception):  # a cancellation must stay what it is
            if self.unknown is not None:
                cause.__cause__ = self._outcome(cause)
            raise cause
        if not may_pass:
            _refuse(cause)
        self.attempts += 1
        wait = 0.0
        if self.attempts > 1:
            wait = min(_WAIT_SECONDS * 2 ** min(self.attempts - 2, 10), _WAIT_SECONDS_MAX)
        if now + wait >= self.deadline:
            if self.unknown is not None:
                raise self._outcome(self.unknown) from cause
            raise ServerUnavailableError(SERVER, _said(cause)) from cause
        return wait

    def _outcome(self, cause: BaseException) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"the append to {self.batch.stream}",
            reason=_said(cause),
            ids=[event.event_id for event in self.batch.encoded],
        )


def writing(  # noqa: PLR0913 -- what may be said about one append
    stream: StreamId,
    events: Sequence[object],
    *,
    expected_version: int | Expected,
    metadata: Mapping[str, Any] | None,
    event_ids: Sequence[UUID] | None,
    unless: Condition | None,
    types: EventTypes,
    schema: str,
    deadline: float,
) -> Writing:
    """Return an append that recognises itself."""
    encoded = identified(encode_batch(events, types=types, metadata=metadata), event_ids)
    keyed = isinstance(expected_version, Expected)
    batch = StreamBatch(stream, encoded, expected_version, None, keyed)
    return Writing(batch, guard(unless, stream, types=types), schema, deadline)


def _may_pass(error: BaseException, *, sent: bool) -> bool:
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if isinstance(error, (*_ROLLED_BACK, *_FORGOTTEN)) or (sent and is_unknown(error)):
        return True
    return isinstance(named_error(error, SERVER), ServerUnavailableError)


def _refuse(error: Exception) -> None:
    named = named_error(error, SERVER)
    if named is not None:
        raise named from error
    if isinstance(error, psycopg.Error):
        # As SQLAlchemy raises it, but without the statement's parameters.
        raise DBAPIError.instance(None, None, error, psycopg.Error) from error
    raise error


def must_reconnect(error: BaseException) -> bool:
    """Return whether a connection is of no use after ``error``, although it is not broken."""
    return not isinstance(error, Exception) or isinstance(error, (*_FORGOTTEN, *_FENCED))


def _said(error: BaseException) -> str:
    # Of a driver's error the first line: further ones may quote rows.
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
