"""Engines of every kind: in autocommit mode, watched, asynchronous, with two-phase commits."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from datapatterns import aio
from datapatterns.embedded import PostgresServer
from datapatterns.errors import AbortedTransactionError, IsolationLevelError, OutcomeUnknownError
from datapatterns.outcomes import find_unknown_outcome
from datapatterns.testing import FaultProxy
from datapatterns.transactions import transaction, watch_commits
from tests.fixtures.lost_commits import Network

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]


def write(conn: Connection, body: str = "hello") -> None:
    conn.execute(text("INSERT INTO note VALUES (:body)"), {"body": body})


def notes(engine: Engine) -> list[str]:
    with engine.connect() as conn:
        return list(conn.scalars(text("SELECT body FROM note ORDER BY body")))


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """An engine on a database with a table of notes."""
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE note (body text PRIMARY KEY)"))
    return engine


def test_a_transaction_that_would_be_none_is_refused(engine: Engine) -> None:
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")

    with pytest.raises(IsolationLevelError, match="autocommit"), transaction(alone) as conn:
        write(conn)

    assert notes(engine) == []


def test_asyncio_refuses_it_too(engine: Engine) -> None:
    async def both() -> None:
        alone = create_async_engine(engine.url, isolation_level="AUTOCOMMIT")
        with pytest.raises(IsolationLevelError):
            async with aio.transaction(alone) as conn:
                await conn.run_sync(write)
        with pytest.raises(IsolationLevelError):
            await aio.in_transaction(alone, write)
        await alone.dispose()

    asyncio.run(both())

    assert notes(engine) == []


@pytest.mark.parametrize("in_session", [False, True])
def test_a_cancelled_commit_of_a_watched_engine_says_what_is_unknown(
    network: Network, *, in_session: bool
) -> None:
    async def attempt(far: AsyncEngine) -> None:
        if in_session:
            async with AsyncSession(far) as session:
                await session.execute(text("INSERT INTO note VALUES ('hello')"))
                network.blackhole()
                await session.commit()
        else:
            async with far.begin() as conn:
                await conn.run_sync(write)
                network.blackhole()

    async def cancelled() -> BaseException:
        far = create_async_engine(network.url)
        watch_commits(far.sync_engine)
        with pytest.raises(TimeoutError) as raised:
            await asyncio.wait_for(attempt(far), 2)
        network.cut()
        await far.dispose()
        return raised.value

    assert find_unknown_outcome(asyncio.run(cancelled())) is not None


class TwoPhases:
    """A database with two-phase commits, and a watched engine behind a network that can break."""

    def __init__(self, near: Engine, far: Engine, network: Network) -> None:
        self.near, self.far, self.network = near, far, network

    def commit(
        self, body: str, *, prepared: bool, then: Callable[[Connection], object] = lambda _: None
    ) -> None:
        with self.far.connect() as conn:
            begun = conn.begin_twophase(body)
            write(conn, body)
            then(conn)
            if prepared:
                begun.prepare()
            begun.commit()


@pytest.fixture
def two_phases(postgres_server: PostgresServer) -> Iterator[TwoPhases]:
    """Two-phase commits need a setting, and that a restart."""
    alone = create_engine(postgres_server.url, isolation_level="AUTOCOMMIT")
    with alone.connect() as conn:
        conn.execute(text("ALTER SYSTEM SET max_prepared_transactions = 5"))
    alone.dispose()
    postgres_server.stop()
    postgres_server.start()
    near = create_engine(postgres_server.url)
    with near.begin() as conn:
        conn.execute(text("CREATE TABLE note (body text PRIMARY KEY)"))
    with FaultProxy(postgres_server.url) as network:
        far = watch_commits(create_engine(network.url))
        yield TwoPhases(near, far, network)
        far.dispose()
    near.dispose()


def swallow(conn: Connection) -> None:
    with suppress(DBAPIError):
        conn.execute(text("SELECT 1 / 0"))


def test_two_phases_of_a_watched_engine_end_as_one_does(two_phases: TwoPhases) -> None:
    network = two_phases.network
    two_phases.commit("1: prepared", prepared=True)
    two_phases.commit("2: at once", prepared=False)

    network.cut_next_reply_to("COMMIT PREPARED")
    with pytest.raises(OutcomeUnknownError):
        two_phases.commit("3: lost", prepared=True)
    network.cut_next_reply_to("PREPARE TRANSACTION")
    with pytest.raises(OperationalError):  # definite: nothing is committed
        two_phases.commit("4: not prepared", prepared=True)
    with pytest.raises(AbortedTransactionError):
        two_phases.commit("5: swallowed", prepared=False, then=swallow)
    two_phases.commit("6: after", prepared=True)

    assert notes(two_phases.near) == ["1: prepared", "2: at once", "3: lost", "6: after"]
