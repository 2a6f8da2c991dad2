"""What the recorder writes down about transactions that end in one way or another."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from threading import Barrier

import pytest
from psycopg import errors as psycopg_errors
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import OutcomeUnknownError
from datapatterns.testing.histories import HistoryEvent, Recorder, check_history

Begin = Callable[[], AbstractContextManager[str]]


class LostConnectionError(psycopg_errors.OperationalError):
    """What psycopg raises when the connection is gone: there is no SQLSTATE."""


def committing(error: BaseException | None = None) -> Begin:
    """Return what begins a transaction whose COMMIT raises ``error``."""

    @contextmanager
    def begin() -> Iterator[str]:
        yield "conn"
        if error is not None:
            raise error

    return begin


def wrapped(error: psycopg_errors.Error) -> DBAPIError:
    return DBAPIError("COMMIT", None, error)


def outcomes(history: list[HistoryEvent]) -> list[str]:
    return [event.type for event in history if event.type != "invoke"]


def test_a_transaction_is_recorded_with_what_it_did_and_read() -> None:
    recorder = Recorder(now_nanoseconds=lambda: 7)
    client = recorder.client()

    with client.transaction(committing()()) as txn:
        txn.append("x", 1)
        found = txn.read("x", (1,))
        conn = txn.conn

    assert (found, conn) == ([1], "conn")
    assert recorder.history() == [
        HistoryEvent(0, 0, "invoke", [], 7),
        HistoryEvent(1, 0, "ok", [("append", "x", 1), ("r", "x", [1])], 7),
    ]


def test_an_error_before_the_commit_is_a_failure() -> None:
    recorder = Recorder()
    client = recorder.client()

    with suppress(LostConnectionError), client.transaction(committing()()) as txn:
        txn.append("x", 1)
        raise LostConnectionError

    assert outcomes(recorder.history()) == ["fail"]
    assert recorder.history()[1].value == [("append", "x", 1)]
    assert client.process == 0


def test_an_error_while_rolling_back_is_still_a_failure() -> None:
    @contextmanager
    def begin() -> Iterator[None]:
        try:
            yield
        finally:
            raise LostConnectionError

    recorder = Recorder()

    with pytest.raises(LostConnectionError), recorder.client().transaction(begin()):
        raise ValueError

    assert outcomes(recorder.history()) == ["fail"]


def test_a_connection_that_cannot_be_opened_is_a_failure() -> None:
    class Refused:
        def __enter__(self) -> None:
            raise LostConnectionError

        def __exit__(self, *_: object) -> None:
            pytest.fail("it was never entered")

    recorder = Recorder()

    with pytest.raises(LostConnectionError), recorder.client().transaction(Refused()):
        pytest.fail("it has not begun")

    assert outcomes(recorder.history()) == ["fail"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (LostConnectionError(), "info"),
        (wrapped(LostConnectionError()), "info"),
        (psycopg_errors.SerializationFailure(), "fail"),
        (wrapped(psycopg_errors.SerializationFailure()), "fail"),
        (wrapped(psycopg_errors.DeadlockDetected()), "fail"),
        (wrapped(psycopg_errors.ForeignKeyViolation()), "fail"),
        (wrapped(psycopg_errors.StatementCompletionUnknown()), "info"),
        (wrapped(psycopg_errors.AdminShutdown()), "info"),
        (wrapped(psycopg_errors.QueryCanceled()), "info"),
        (OutcomeUnknownError("a transaction", reason="the answer was lost"), "info"),
        (TimeoutError(), "info"),
        (KeyboardInterrupt(), "info"),
    ],
    ids=repr,
)
def test_an_error_of_the_commit_is_a_failure_only_if_the_server_said_so(
    error: BaseException, outcome: str
) -> None:
    recorder = Recorder()

    with pytest.raises(type(error)), recorder.client().transaction(committing(error)()):
        pass

    assert outcomes(recorder.history()) == [outcome]


def test_an_unknown_outcome_is_unknown_wherever_it_comes_from() -> None:
    recorder = Recorder()
    unknown = OutcomeUnknownError("a transaction", reason="the answer was lost")

    with suppress(RuntimeError), recorder.client().transaction(committing()()):
        raise RuntimeError from unknown

    assert outcomes(recorder.history()) == ["info"]


def test_what_commits_by_itself_can_say_that_an_error_of_the_block_leaves_the_outcome_open() -> (
    None
):
    @contextmanager
    def begin() -> Iterator[None]:
        try:
            yield
        except LostConnectionError as error:
            raise OutcomeUnknownError("an RPUSH", reason="the answer was lost") from error

    recorder = Recorder()

    with suppress(OutcomeUnknownError), recorder.client().transaction(begin()):
        raise LostConnectionError

    assert outcomes(recorder.history()) == ["info"]


def test_an_unknown_outcome_is_unknown_behind_an_error_that_names_no_cause() -> None:
    recorder = Recorder()
    unknown = OutcomeUnknownError("a transaction", reason="the answer was lost")

    with suppress(RuntimeError), recorder.client().transaction(committing()()):
        try:
            raise unknown
        except OutcomeUnknownError:
            raise RuntimeError  # noqa: B904 -- as careless code does

    assert outcomes(recorder.history()) == ["info"]


def test_an_unknown_outcome_is_unknown_among_errors_of_a_task_group() -> None:
    recorder = Recorder()
    unknown = OutcomeUnknownError("a transaction", reason="the answer was lost")

    with (
        pytest.raises(ExceptionGroup),
        recorder.client().transaction(committing()()),
    ):
        raise ExceptionGroup("tasks", [ValueError(), ExceptionGroup("more", [unknown])])

    assert outcomes(recorder.history()) == ["info"]


def test_who_changes_the_list_that_he_read_does_not_change_the_history() -> None:
    recorder = Recorder()

    with recorder.client().transaction() as txn:
        found = txn.read("x", [1])
        txn.append("x", 2)
        found.append(2)

    assert recorder.history()[1].value == [("r", "x", [1]), ("append", "x", 2)]


def test_a_transaction_is_recorded_once() -> None:
    recorder = Recorder()
    transaction = recorder.client().transaction()

    with transaction:
        pass

    with pytest.raises(ValueError, match="ask the client for another"), transaction:
        pytest.fail("it has begun again")
    assert outcomes(recorder.history()) == ["ok"]


@pytest.mark.parametrize(("key", "value"), [(("x", 1), 1), (None, 1), ("x", 1.5), ("x", True)])
def test_keys_and_values_that_no_file_can_hold_are_refused_at_once(
    key: object, value: object
) -> None:
    with Recorder().client().transaction() as txn:
        with pytest.raises(TypeError, match="is an integer or a string, not"):
            txn.append(key, value)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="is an integer or a string, not"):
            txn.read((key, value), [])  # type: ignore[arg-type]


def test_without_a_context_manager_that_commits_any_error_may_come_from_a_commit() -> None:
    recorder = Recorder()

    with suppress(LostConnectionError), recorder.client().transaction() as txn:
        assert txn.conn is None
        raise LostConnectionError

    assert outcomes(recorder.history()) == ["info"]


def test_who_commits_by_himself_can_say_so() -> None:
    recorder = Recorder()

    with suppress(LostConnectionError), recorder.client().transaction(committing()()) as txn:
        txn.committing()
        raise LostConnectionError

    assert outcomes(recorder.history()) == ["info"]


def test_an_error_that_the_context_manager_swallows_leaves_the_outcome_open() -> None:
    recorder = Recorder()

    def work() -> None:
        with recorder.client().transaction(suppress(ValueError)):
            raise ValueError

    work()

    assert outcomes(recorder.history()) == ["info"]


def test_a_client_goes_on_under_a_new_number_after_an_unknown_outcome() -> None:
    recorder = Recorder()
    first, other = recorder.client(), recorder.client()

    with suppress(LostConnectionError), first.transaction(committing(LostConnectionError())()):
        pass
    with first.transaction():
        pass

    assert (other.process, first.process) == (1, 2)
    assert [event.process for event in recorder.history()] == [0, 0, 2, 2]
    assert not check_history(recorder.history())


def test_what_was_planned_counts_whole_if_nobody_knows() -> None:
    recorder = Recorder()
    planned = [("append", "x", 1), ("r", "x", None), ("append", "y", 1)]

    with (
        suppress(LostConnectionError),
        recorder.client().transaction(planned=planned) as txn,  # type: ignore[arg-type]  # inferred
    ):
        txn.append("x", 1)
        raise LostConnectionError

    begun, ended = recorder.history()
    assert begun.value == ended.value == planned


def test_one_client_cannot_do_two_things_at_once() -> None:
    client = Recorder().client()

    with client.transaction(), pytest.raises(ValueError, match="take another"):
        client.transaction().__enter__()


def test_threads_share_a_recorder() -> None:
    recorder = Recorder()
    together = Barrier(8)

    def work(number: int) -> None:
        client = recorder.client()
        together.wait()
        for value in range(100):
            with client.transaction() as txn:
                txn.append(number, value)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))

    history = recorder.history()
    assert [event.index for event in history] == list(range(1600))
    assert check_history(history).transactions == 800


def test_tasks_share_a_recorder() -> None:
    @asynccontextmanager
    async def begin() -> AsyncIterator[str]:
        yield "conn"
        await asyncio.sleep(0)

    async def work(number: int) -> None:
        async with recorder.client().transaction(begin()) as txn:
            assert txn.conn == "conn"
            txn.append(number, 1)

    async def all_of_them() -> None:
        await asyncio.gather(*map(work, range(5)))

    recorder = Recorder()
    asyncio.run(all_of_them())

    assert [event.type for event in recorder.history()] == ["invoke"] * 5 + ["ok"] * 5


@pytest.mark.parametrize(("moment", "outcome"), [("block", "fail"), ("commit", "info")])
def test_a_task_that_is_cancelled_has_failed_unless_it_was_committing(
    moment: str, outcome: str
) -> None:
    @asynccontextmanager
    async def begin() -> AsyncIterator[None]:
        yield
        reached.set()
        await asyncio.Event().wait()

    async def work() -> None:
        async with recorder.client().transaction(begin()):
            if moment == "block":
                reached.set()
                await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.create_task(work())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    recorder, reached = Recorder(), asyncio.Event()
    asyncio.run(cancel())

    assert outcomes(recorder.history()) == [outcome]
