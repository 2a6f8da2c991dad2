"""What an error of an append means, and when it is sent again; without a server."""

import asyncio

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from datapatterns.errors import (
    MissingRightsError,
    OutcomeUnknownError,
    ReadOnlyServerError,
    ServerUnavailableError,
)
from datapatterns.event_sourcing import ANY, EventTypes, NewEvent, StreamId
from datapatterns.event_sourcing.appending.writing import Writing, writing

LOST = psycopg.OperationalError("server closed the connection unexpectedly\nrow (secret)")
READ_ONLY = errors.ReadOnlySqlTransaction("cannot execute INSERT")
EVENT = NewEvent("a", {})


def begun() -> Writing:
    return writing(
        StreamId("cart", "7"),
        [EVENT],
        expected_version=ANY,
        metadata=None,
        event_ids=None,
        unless=None,
        types=EventTypes(),
        schema="datapatterns",
        deadline=10.0,
    )


def test_a_lost_answer_is_asked_for_at_once_then_ever_more_patiently() -> None:
    append = begun()

    waits = [append.failed(LOST, sent=True, now=0.0) for _ in range(9)]

    assert waits[:4] == [0.0, 0.05, 0.1, 0.2]
    assert waits[-1] == 1.0


def test_without_time_left_the_outcome_is_unknown_and_the_error_has_the_ids() -> None:
    append = begun()
    append.failed(LOST, sent=True, now=9.0)

    with pytest.raises(OutcomeUnknownError) as unknown:
        append.failed(OperationalError("", {}, LOST), sent=False, now=10.0)

    assert unknown.value.ids == (EVENT.event_id,)
    assert "cart-7" in str(unknown.value)
    assert "secret" not in str(unknown.value)


@pytest.mark.parametrize("error", [LOST, PoolTimeoutError("QueuePool limit")])
def test_what_was_never_sent_is_unavailable(error: Exception) -> None:
    with pytest.raises(ServerUnavailableError):
        begun().failed(error, sent=False, now=10.0)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (READ_ONLY, ReadOnlyServerError),
        (errors.InsufficientPrivilege("no"), MissingRightsError),
        (errors.QueryCanceled("statement timeout"), DBAPIError),
        (errors.CheckViolation("no"), DBAPIError),
        (TypeError("bug"), TypeError),
    ],
)
def test_a_refusal_is_not_sent_again(error: Exception, named: type[Exception]) -> None:
    with pytest.raises(named):
        begun().failed(error, sent=True, now=0.0)


def test_a_standby_that_answers_in_a_failover_says_nothing_about_the_outcome() -> None:
    append = begun()
    append.failed(LOST, sent=True, now=0.0)

    assert append.failed(READ_ONLY, sent=True, now=1.0) > 0
    with pytest.raises(OutcomeUnknownError):
        append.failed(READ_ONLY, sent=True, now=10.0)


@pytest.mark.parametrize(
    "error",
    [
        errors.LockNotAvailable("lock timeout"),  # of the first attempt, which still goes on
        errors.QueryCanceled("statement timeout"),
        errors.InsufficientPrivilege("no"),
        PoolTimeoutError("QueuePool limit"),
    ],
)
def test_what_refuses_the_second_attempt_says_nothing_about_the_first(error: Exception) -> None:
    append = begun()
    append.failed(LOST, sent=True, now=0.0)

    assert append.failed(error, sent=True, now=1.0) > 0
    with pytest.raises(OutcomeUnknownError) as unknown:
        append.failed(error, sent=True, now=10.0)

    assert unknown.value.__cause__ is error


@pytest.mark.parametrize("error", [errors.DeadlockDetected(), errors.SerializationFailure()])
def test_what_was_rolled_back_to_let_another_pass_is_sent_again(error: psycopg.Error) -> None:
    append = begun()

    assert append.failed(error, sent=True, now=0.0) == 0.0
    assert append.unknown is None


def test_a_cancellation_stays_what_it_is() -> None:
    with pytest.raises(asyncio.CancelledError) as cancelled:
        begun().failed(asyncio.CancelledError(), sent=True, now=0.0)
    with pytest.raises(asyncio.CancelledError) as early:
        begun().failed(asyncio.CancelledError(), sent=False, now=0.0)

    assert isinstance(cancelled.value.__cause__, OutcomeUnknownError)
    assert early.value.__cause__ is None
