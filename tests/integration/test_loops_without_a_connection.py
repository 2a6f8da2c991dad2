"""A loop whose engine has no connection to spare waits for one, as for the server, and gives up."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from datapatterns.event_sourcing import (
    AsyncFollower,
    AsyncMarkPublisher,
    Follower,
    MarkPublisher,
    Pace,
    published_mark,
)
from datapatterns.testing import ManualClock
from tests.fixtures.followers import store, write

SMALL = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
HASTY = Pace(lost_seconds_max=1)


class Meanwhile(ManualClock):
    """Does something in the second pause."""

    def __init__(self, action: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self._action, self._pauses = action, 0

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self._pauses += 1
        if self._pauses == 2:
            self._action()


@pytest.fixture
def small(engine: Engine) -> Iterator[Engine]:
    """An engine with one connection."""
    with engine.begin() as conn:
        write(conn)
    small = create_engine(engine.url, **SMALL)
    yield small
    small.dispose()


def test_a_follower_waits_for_a_connection_and_gives_up_in_the_end(small: Engine) -> None:
    taken = small.connect()
    pages = Follower(store, small, clock=Meanwhile(taken.close)).pages()

    assert len(next(pages).events) == 1
    pages.close()

    with small.connect(), pytest.raises(PoolTimeoutError):
        next(Follower(store, small, pace=HASTY, clock=ManualClock()).pages())


def test_a_publisher_waits_for_a_connection_and_gives_up_in_the_end(small: Engine) -> None:
    taken = small.connect()

    def make_room() -> None:
        taken.close()
        clock.sleep = lambda seconds: publisher.stop()  # type: ignore[method-assign]  # noqa: ARG005

    clock = Meanwhile(make_room)
    publisher = MarkPublisher(store, small, clock=clock)
    publisher.run()

    with small.connect() as conn:
        assert published_mark(conn, store) is not None
        with pytest.raises(PoolTimeoutError):
            MarkPublisher(store, small, lost_seconds_max=1, clock=ManualClock()).run()


def test_tasks_give_up_in_the_end(small: Engine) -> None:
    async def both(engine: AsyncEngine) -> None:
        async with engine.connect():
            with pytest.raises(PoolTimeoutError):
                await anext(AsyncFollower(store, engine, pace=HASTY, clock=ManualClock()).pages())
            with pytest.raises(PoolTimeoutError):
                await AsyncMarkPublisher(
                    store, engine, lost_seconds_max=1, clock=ManualClock()
                ).run()
        await engine.dispose()

    async def waiting(engine: AsyncEngine) -> None:
        taken = await engine.connect()
        closing: list[asyncio.Task[None]] = []
        clock = Meanwhile(lambda: closing.append(asyncio.create_task(taken.close())))
        pages = AsyncFollower(store, engine, clock=clock).pages()
        assert len((await anext(pages)).events) == 1
        await pages.aclose()
        await asyncio.gather(*closing)
        await engine.dispose()

    asyncio.run(both(create_async_engine(small.url, **SMALL)))
    asyncio.run(waiting(create_async_engine(small.url, **SMALL)))
