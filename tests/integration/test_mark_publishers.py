"""Loops that publish the mark get over lost connections, end when they are told to, or give up."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.errors import CommitUnansweredError
from datapatterns.event_sourcing import (
    AsyncMarkPublisher,
    EventStore,
    MarkPublisher,
    Position,
    published_mark,
)
from datapatterns.testing import ManualClock, wait_until
from datapatterns.transactions import watch_commits
from tests.fixtures.followers import store, write
from tests.fixtures.lost_commits import LosingClock, Loss, Network


def test_publishers_let_the_mark_move_until_they_are_stopped(engine: Engine) -> None:
    own = create_engine(engine.url, isolation_level="REPEATABLE READ")
    publishers = [MarkPublisher(store, own, seconds=seconds) for seconds in (0.001, 3_600)]

    def published() -> Position | None:
        with engine.connect() as conn:
            found = published_mark(conn, store)
        return None if found is None else found.position

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(publisher.run) for publisher in publishers]
        try:
            for number in range(1, 4):
                with engine.begin() as conn:
                    write(conn, "a")
                wait_until(lambda at=number: published() == at, deadline_seconds=60)  # type: ignore[misc]
        finally:
            for publisher in publishers:
                publisher.stop()
        for run in running:
            run.result(timeout=60)
    own.dispose()
    for publisher in publishers:
        publisher.run()  # stopped, it does not begin again


def kill_others(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def test_a_publisher_gets_over_a_killed_session_and_gives_up_in_the_end(engine: Engine) -> None:
    clock, pauses = ManualClock(), 0

    class Pausing(ManualClock):
        def sleep(self, seconds: float) -> None:
            nonlocal pauses
            pauses += 1
            clock.advance(seconds)
            if pauses == 1:
                with ThreadPoolExecutor(1) as pool:  # who kills is not who publishes
                    pool.submit(kill_others, engine).result()
            if pauses == 3:
                publisher.stop()

        def monotonic(self) -> float:
            return clock.monotonic()

    own = create_engine(engine.url)
    publisher = MarkPublisher(store, own, clock=Pausing())
    publisher.run()
    own.dispose()
    assert pauses == 3

    gone = create_engine(engine.url.set(database="not_there"))
    with pytest.raises(OperationalError):
        MarkPublisher(store, gone, lost_seconds_max=1, clock=ManualClock()).run()


def test_what_waiting_does_not_mend_ends_a_publisher(engine: Engine) -> None:
    with pytest.raises(DBAPIError, match="does not exist"):
        MarkPublisher(EventStore(schema="elsewhere"), engine).run()
    with pytest.raises(ValueError, match="no"):
        MarkPublisher(store, engine, seconds=0)


def test_a_task_publishes_too_and_gets_over_killed_sessions(engine: Engine) -> None:
    plain = create_engine(engine.url, poolclass=NullPool)

    def published() -> Position | None:
        with plain.connect() as conn:
            found = published_mark(conn, store)
        return None if found is None else found.position

    async def work() -> None:
        own = create_async_engine(engine.url, isolation_level="REPEATABLE READ")
        publisher = AsyncMarkPublisher(store, own, seconds=0.001)
        running = asyncio.create_task(publisher.run())
        for number in range(1, 4):
            with plain.begin() as conn:
                write(conn, "a")
            await asyncio.to_thread(
                wait_until, lambda at=number: published() == at, deadline_seconds=60
            )
            kill_others(plain)
        publisher.stop()
        await running
        await publisher.run()  # stopped, it does not begin again
        await own.dispose()

    asyncio.run(work())


def test_a_task_that_publishes_gives_up_in_the_end(engine: Engine) -> None:
    async def work() -> None:
        gone = create_async_engine(engine.url.set(database="not_there"))
        publisher = AsyncMarkPublisher(store, gone, lost_seconds_max=1, clock=ManualClock())
        with pytest.raises(OperationalError):
            await publisher.run()
        await gone.dispose()

    asyncio.run(work())


def test_a_task_that_pauses_is_stopped_at_once(engine: Engine) -> None:
    async def work() -> None:
        own = create_async_engine(engine.url)
        publisher = AsyncMarkPublisher(store, own, seconds=3_600)
        running = asyncio.create_task(publisher.run())
        async with asyncio.timeout(60), own.connect() as conn:
            while await conn.run_sync(published_mark, store) is None:
                await conn.rollback()
            publisher.stop()
            await running
        await own.dispose()

    asyncio.run(work())


@pytest.mark.chaos
@pytest.mark.parametrize("watched", [True, False])
def test_whoever_never_hears_of_a_commit_gives_up(
    network: Network, far: Engine, loss: Loss, *, watched: bool
) -> None:
    if watched:
        watch_commits(far)
    clock = LosingClock(loss, network)

    with pytest.raises(CommitUnansweredError):
        MarkPublisher(store, far, seconds=1, clock=clock).run()

    assert 60 < clock.monotonic() < 65


@pytest.mark.chaos
def test_a_task_that_never_hears_of_a_commit_gives_up(network: Network, loss: Loss) -> None:
    clock = LosingClock(loss, network)

    async def work() -> None:
        far = create_async_engine(network.url)
        with pytest.raises(CommitUnansweredError):
            await AsyncMarkPublisher(store, far, seconds=1, clock=clock).run()
        await far.dispose()

    asyncio.run(work())
    assert 60 < clock.monotonic() < 65
