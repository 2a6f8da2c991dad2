"""A COMMIT whose answer is lost: neither a success nor a failure, and how to find out."""

import asyncio
import pickle
from contextlib import suppress
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from datapatterns import UnavailableError, aio
from datapatterns.embedded import PostgresServer
from datapatterns.errors import AbortedTransactionError, CommitUnansweredError, OutcomeUnknownError
from datapatterns.outcomes import (
    Outcome,
    find_unknown_outcome,
    read_outcome,
    take_trace,
    wait_for_outcome,
)
from datapatterns.transactions import reading, resuming, transaction, watch_commits
from tests.fixtures.lost_commits import Loss, Network

ANSWER_LOST = Loss(happens=True)

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """An engine on a database with a table of notes."""
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE note (body text PRIMARY KEY)"))
    return engine


def write(conn: Connection, body: str = "hello") -> None:
    conn.execute(text("INSERT INTO note VALUES (:body)"), {"body": body})


def copied(error: OutcomeUnknownError) -> object:
    return pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own


def notes(engine: Engine) -> list[str]:
    with engine.connect() as conn:
        return list(conn.scalars(text("SELECT body FROM note ORDER BY body")))


def test_a_lost_commit_is_no_failure_that_a_retry_loop_would_catch(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    command = uuid4()
    loss.strike(network)

    with (
        pytest.raises(OutcomeUnknownError) as raised,
        transaction(far, attempted="a note", ids=[command]) as conn,
    ):
        write(conn)

    error = raised.value
    assert not isinstance(error, UnavailableError)
    assert error.attempted == "a note"
    assert error.ids == (command,)
    assert str(command) in str(error)
    assert isinstance(error.__cause__, OperationalError)
    assert bool(notes(engine)) == loss.happens
    assert vars(copied(error)) == vars(error)


def test_asyncio_gets_the_same_error_from_an_operation_and_from_a_block(
    engine: Engine, network: Network, loss: Loss
) -> None:
    async def both() -> None:
        far = create_async_engine(network.url)
        loss.strike(network)
        with pytest.raises(OutcomeUnknownError, match="write"):
            await aio.in_transaction(far, write, "operation")
        loss.strike(network)
        with pytest.raises(OutcomeUnknownError, match="a block"):
            async with aio.transaction(far, attempted="a block") as conn:
                await conn.run_sync(write, "block")
        await far.dispose()

    asyncio.run(both())

    assert notes(engine) == (["block", "operation"] if loss.happens else [])


def test_a_traced_transaction_can_be_asked_about(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    loss.strike(network)
    with pytest.raises(OutcomeUnknownError) as raised, transaction(far, traced=True) as conn:
        write(conn)

    outcome = wait_for_outcome(engine, raised.value, timeout_seconds=10)

    assert outcome is (Outcome.COMMITTED if loss.happens else Outcome.ABORTED)
    assert bool(notes(engine)) == loss.happens


def test_until_the_server_has_decided_it_says_so(engine: Engine) -> None:
    with engine.connect() as conn:
        lost = about_transaction_of(conn)
        undecided = wait_for_outcome(engine, lost, timeout_seconds=0)
        conn.rollback()

    assert undecided is Outcome.IN_PROGRESS
    assert wait_for_outcome(engine, lost, timeout_seconds=10) is Outcome.ABORTED


def test_a_traced_transaction_that_wrote_nothing_has_nothing_to_be_unsure_of(
    network: Network, far: Engine
) -> None:
    ANSWER_LOST.strike(network)

    with pytest.raises(OperationalError), transaction(far, traced=True) as conn:
        conn.execute(text("SELECT body FROM note"))


def test_what_was_not_traced_cannot_be_asked_about(conn: Connection) -> None:
    with pytest.raises(ValueError, match="traced"):
        read_outcome(conn, OutcomeUnknownError("a note", reason="lost"))


def test_a_refusal_at_the_commit_is_definite(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE seat (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))

    with pytest.raises(IntegrityError), transaction(engine) as conn:
        conn.execute(text("INSERT INTO seat VALUES (1), (1)"))


def test_an_error_before_the_commit_is_definite(network: Network, far: Engine) -> None:
    network.cut_next_reply_to("INSERT")

    with pytest.raises(OperationalError), transaction(far) as conn:
        write(conn)


def test_a_connection_that_was_lost_and_not_missed_is_not_committed(
    network: Network, far: Engine
) -> None:
    network.cut_next_reply_to("INSERT")

    with (
        pytest.raises(AbortedTransactionError),
        transaction(far) as conn,
        suppress(OperationalError),
    ):
        write(conn)


def swallow(conn: Connection) -> None:
    write(conn)
    with pytest.raises(IntegrityError):
        write(conn)


def test_a_swallowed_error_would_lose_the_transaction_without_a_word(engine: Engine) -> None:
    with engine.begin() as conn:
        swallow(conn)
    assert notes(engine) == []

    with pytest.raises(AbortedTransactionError, match="begin_nested"), transaction(engine) as conn:
        swallow(conn)


def test_asyncio_does_not_commit_a_swallowed_error_either(engine: Engine) -> None:
    async def both() -> None:
        async_engine = create_async_engine(engine.url)
        with pytest.raises(AbortedTransactionError):
            await aio.in_transaction(async_engine, swallow)
        with pytest.raises(AbortedTransactionError):
            async with aio.transaction(async_engine) as conn:
                await conn.run_sync(swallow)
        await async_engine.dispose()

    asyncio.run(both())

    assert notes(engine) == []


def test_a_watched_engine_tells_lost_commits_apart_wherever_they_are_made(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    watch_commits(far)

    loss.strike(network)
    with pytest.raises(OutcomeUnknownError), far.begin() as conn:
        write(conn, "1: begin")
    loss.strike(network)
    with far.connect() as conn:
        write(conn, "2: connect")
        with pytest.raises(OutcomeUnknownError):
            conn.commit()
    loss.strike(network)
    with Session(far) as session:
        write(session.connection(), "3: session")
        with pytest.raises(OutcomeUnknownError):
            session.commit()
        session.rollback()
        write(session.connection(), "4: session again")
        session.commit()

    written = ["1: begin", "2: connect", "3: session"] if loss.happens else []
    assert notes(engine) == [*written, "4: session again"]


def test_a_watched_engine_does_not_commit_a_swallowed_error_and_goes_on_after(
    engine: Engine,
) -> None:
    watch_commits(engine)

    with pytest.raises(AbortedTransactionError), engine.begin() as conn:
        swallow(conn)
    with Session(engine) as session:
        swallow(session.connection())
        with pytest.raises(AbortedTransactionError):
            session.commit()
        session.rollback()
        write(session.connection(), "after")
        session.commit()

    assert notes(engine) == ["after"]


def test_a_connection_whose_commit_was_refused_goes_to_nobody_else(engine: Engine) -> None:
    watch_commits(engine)

    with engine.connect() as conn:
        swallow(conn)
        with pytest.raises(AbortedTransactionError):
            conn.commit()
    with engine.begin() as conn:
        write(conn, "another")

    assert notes(engine) == ["another"]


def test_a_failing_statement_on_a_watched_engine_stays_what_it_is(
    network: Network, far: Engine
) -> None:
    watch_commits(far)

    with far.connect() as conn:
        write(conn, "first")
        conn.commit()
        network.cut_next_reply_to("INSERT")
        with pytest.raises(OperationalError):
            write(conn, "second")


def test_work_that_resumes_is_simply_done_again(network: Network, far: Engine) -> None:
    ANSWER_LOST.strike(network)

    with (
        far.connect() as conn,
        pytest.raises(CommitUnansweredError, match="run it again") as raised,
        resuming(conn, "a page"),
    ):
        write(conn)

    assert isinstance(raised.value, UnavailableError)


def test_reading_has_no_commit_that_could_be_lost(network: Network, far: Engine) -> None:
    trap = ANSWER_LOST.strike(network)

    with far.connect() as conn, reading(conn):
        assert conn.scalar(text("SELECT count(*) FROM note")) == 0

    assert not trap.has_fired


def test_a_cancelled_commit_stays_cancelled_and_says_what_is_unknown(network: Network) -> None:
    async def cancelled() -> BaseException:
        far = create_async_engine(network.url)

        async def attempt() -> None:
            async with aio.transaction(far, attempted="a note") as conn:
                await conn.run_sync(write)
                network.blackhole()

        task = asyncio.create_task(attempt())
        await asyncio.to_thread(network.wait_for_connections, 1)
        with pytest.raises(TimeoutError) as raised:
            await asyncio.wait_for(task, 2)
        network.cut()
        await far.dispose()
        return raised.value

    error = asyncio.run(cancelled())

    unknown = find_unknown_outcome(error)
    assert unknown is not None
    assert unknown.attempted == "a note"


def about_transaction_of(conn: Connection) -> OutcomeUnknownError:
    conn.execute(text("SELECT pg_current_xact_id()"))
    trace = take_trace(conn)
    assert trace is not None
    return OutcomeUnknownError("a note", reason="lost", xid=trace.xid, server=trace.server)


def crash_in_a_transaction(server: PostgresServer) -> OutcomeUnknownError:
    engine = create_engine(server.url, poolclass=NullPool)
    conn = engine.connect()
    lost = about_transaction_of(conn)
    server.kill()
    conn.invalidate()
    conn.close()
    server.start()
    return lost


def commit_until(server: PostgresServer, xid: int) -> int:
    """Commit transactions until one has this id or a later one; return its id."""
    with psycopg.connect(server.url.render_as_string(False).replace("+psycopg", "")) as conn:
        while True:
            row = conn.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
            conn.commit()
            assert row
            if row[0] >= xid:
                return int(row[0])


def test_a_traced_id_survives_the_crash_of_the_server(postgres_server: PostgresServer) -> None:
    lost = crash_in_a_transaction(postgres_server)

    later = commit_until(postgres_server, lost.xid or 0)

    with create_engine(postgres_server.url, poolclass=NullPool).connect() as conn:
        assert later != lost.xid
        assert read_outcome(conn, lost) is Outcome.ABORTED


def test_an_id_that_is_given_out_again_does_not_pass_for_a_commit(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before PostgreSQL 17 an id cannot be flushed to the log."""
    monkeypatch.setattr("datapatterns.outcomes._FLUSHES_MESSAGES_SINCE", 10_000_000)
    lost = crash_in_a_transaction(postgres_server)
    with create_engine(postgres_server.url, poolclass=NullPool).connect() as conn:
        before = read_outcome(conn, lost)

    later = commit_until(postgres_server, lost.xid or 0)

    with create_engine(postgres_server.url, poolclass=NullPool).connect() as conn:
        assert before is Outcome.ABORTED
        assert later == lost.xid
        assert conn.scalar(text(f"SELECT pg_xact_status('{later}')")) == "committed"
        assert read_outcome(conn, lost) is Outcome.FORGOTTEN


def test_an_id_of_another_server_says_nothing(conn: Connection) -> None:
    lost = about_transaction_of(conn)

    foreign = OutcomeUnknownError("a note", reason="lost", xid=lost.xid, server=f"1{lost.server}")

    assert read_outcome(conn, foreign) is Outcome.FORGOTTEN
