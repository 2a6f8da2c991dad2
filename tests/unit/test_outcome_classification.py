"""Which errors of a COMMIT leave open whether it was carried out, and which do not."""

import asyncio
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from datapatterns.errors import (
    AbortedTransactionError,
    CommitUnansweredError,
    OutcomeUnknownError,
)
from datapatterns.outcomes import find_unknown_outcome, is_unknown
from datapatterns_cli.failures import failure


def said(sqlstate: str, severity: str = "ERROR") -> psycopg.Error:
    """What psycopg raises for this answer of the server."""
    kind = errors.lookup(sqlstate) if _is_known(sqlstate) else errors.OperationalError
    diagnosis = SimpleNamespace(severity=severity, severity_nonlocalized=severity)
    answer = type(kind.__name__, (kind,), {"diag": diagnosis, "sqlstate": sqlstate})
    error: psycopg.Error = answer("the server said so")
    return error


def _is_known(sqlstate: str) -> bool:
    try:
        errors.lookup(sqlstate)
    except KeyError:
        return False
    return True


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("server closed the connection unexpectedly"),
        psycopg.InterfaceError("lost synchronization"),
        said("08006"),
        said("08P01"),  # as poolers say it
        said("40003"),
        said("57P01", "FATAL"),
        said("57P02", "FATAL"),
        said("57P03", "FATAL"),
        said("57P05", "FATAL"),
        said("25P04", "FATAL"),
        said("53100", "PANIC"),
        said("XX000", "PANIC"),
        TimeoutError(),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        OutcomeUnknownError("a note", reason="lost"),
    ],
    ids=repr,
)
def test_no_answer_leaves_it_open(error: BaseException) -> None:
    assert is_unknown(error)


@pytest.mark.parametrize(
    "error",
    [
        said("40001"),
        said("40P01"),
        said("23505"),
        said("23503"),
        said("P0001"),
        said("57014"),
        said("53100"),
        said("25P03", "FATAL"),
        psycopg.ProgrammingError("cannot commit in a transaction() block"),
        InvalidRequestError("this transaction is closed"),
    ],
    ids=repr,
)
def test_a_refusal_does_not(error: BaseException) -> None:
    assert not is_unknown(error)


def test_it_is_the_drivers_error_that_counts() -> None:
    lost = psycopg.OperationalError("gone")

    assert is_unknown(DBAPIError.instance(None, None, lost, psycopg.Error))
    assert not is_unknown(DBAPIError.instance(None, None, said("40001"), psycopg.Error))


def test_an_unknown_outcome_is_found_behind_what_it_was_turned_into() -> None:
    unknown = OutcomeUnknownError("a note", reason="lost")
    cancelled = asyncio.CancelledError()
    cancelled.__cause__ = unknown
    late = TimeoutError()
    late.__context__ = cancelled

    assert find_unknown_outcome(late) is unknown
    assert find_unknown_outcome(unknown) is unknown


def test_an_unknown_outcome_that_was_dealt_with_is_not_found() -> None:
    answered = ValueError("something else")
    answered.__context__ = OutcomeUnknownError("a note", reason="lost")
    answered.__suppress_context__ = True  # as by "from None"

    assert find_unknown_outcome(answered) is None


def test_the_message_says_what_can_be_done() -> None:
    plain = OutcomeUnknownError("a note", reason="lost")
    identified = OutcomeUnknownError("a note", reason="lost", ids=["id-1"])
    traced = OutcomeUnknownError("a note", reason="lost", xid=7, server="here")

    assert "look for what it wrote" in str(plain)
    assert "same ids (id-1)" in str(identified)
    assert "read_outcome() about its transaction 7" in str(traced)


def test_the_command_line_has_an_exit_code_of_its_own_for_it() -> None:
    assert failure(OutcomeUnknownError("a note", reason="lost")).exit_code == 6
    assert failure(CommitUnansweredError("a page", reason="lost")).exit_code == 4
    assert failure(AbortedTransactionError("a note")).exit_code == 2
