"""Many wait in one process: they share looks, are woken by its own pages, and hold nothing."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.client import Pipeline
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.cqrs import Projections, RedisView, Token
from datapatterns.cqrs.reading import waiting_flow
from datapatterns.cqrs.reading.sharing import SharedLooks
from datapatterns.cqrs.reading.sharing_async import AsyncSharedLooks
from datapatterns.cqrs.reading.turns import Seen
from datapatterns.errors import ForeignTokenError, ReadModelBehindError, ServerUnavailableError
from datapatterns.event_sourcing import EventStore
from tests.fixtures.read_models import (
    Dashboard,
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
)

STORE = EventStore()
PROJECTIONS = Projections(STORE)
MILK = ItemScanned("milk", 1)
WAITERS = 20
LONG = 60.0
"""Longer than a test may take, but not for ever if it fails."""


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


@pytest.fixture
def never_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody look a second time unless there is a reason."""
    monkeypatch.setattr(waiting_flow, "PAUSE_SECONDS_MIN", LONG)
    monkeypatch.setattr(waiting_flow, "PAUSE_SECONDS_MAX", LONG)


@contextmanager
def looks_at(engine: Engine, seen: Callable[[], object]) -> Iterator[None]:
    def look(_c: object, _cur: object, statement: str, *_: object) -> None:
        if "min(datapatterns.projection_shard" in statement:
            seen()

    event.listen(engine, "after_cursor_execute", look)
    yield
    event.remove(engine, "after_cursor_execute", look)


# -- sharing --------------------------------------------------------------------------------------


class Gate:
    """Asked by one at a time, and holds the first until it is opened."""

    def __init__(self) -> None:
        self.asked, self.open = 0, Event()
        self.entered = Event()
        self._lock = Lock()

    def ask(self) -> int:
        with self._lock:
            self.asked += 1
            number = self.asked
        self.entered.set()
        assert self.open.wait(timeout=30)
        return number


class Joined:
    """Tells when all have come."""

    def __init__(self, expected: int) -> None:
        self._left, self._lock, self.all = expected, Lock(), Event()

    def left(self) -> Callable[[], float]:
        told = False

        def left() -> float:
            nonlocal told
            if not told:
                told = True
                with self._lock:
                    self._left -= 1
                    if not self._left:
                        self.all.set()
            return LONG

        return left


def test_who_comes_while_somebody_looks_shares_the_next_look() -> None:
    looks: SharedLooks[int] = SharedLooks()
    gate, joined = Gate(), Joined(WAITERS)
    with ThreadPoolExecutor(WAITERS + 1) as pool:
        first = pool.submit(looks.look, gate.ask, lambda: LONG)
        assert gate.entered.wait(timeout=30)
        others = [pool.submit(looks.look, gate.ask, joined.left()) for _ in range(WAITERS)]
        assert joined.all.wait(timeout=30)
        gate.open.set()
        answers = [each.result(timeout=30) for each in (first, *others)]

    assert [each.value for each in answers if each is not None] == [1] + [2] * WAITERS
    assert gate.asked == 2


def test_whoever_waits_without_a_limit_waits_for_the_look_of_another() -> None:
    looks: SharedLooks[int] = SharedLooks()
    gate = Gate()
    waits = Event()

    def for_ever() -> float:
        waits.set()
        return float("inf")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(looks.look, gate.ask, lambda: LONG)
        assert gate.entered.wait(timeout=30)
        other = pool.submit(looks.look, lambda: 7, for_ever)
        assert waits.wait(timeout=30)
        gate.open.set()
        assert first.result(timeout=30) is not None
        seen = other.result(timeout=30)

    assert seen is not None
    assert seen.value == 7


def test_a_look_that_fails_is_not_the_failure_of_those_who_shared_it() -> None:
    looks: SharedLooks[int] = SharedLooks()
    gate, joined = Gate(), Joined(2)

    def fail() -> int:
        gate.ask()
        raise ConnectionError

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(looks.look, gate.ask, lambda: LONG)
        assert gate.entered.wait(timeout=30)
        others = [pool.submit(looks.look, fail, joined.left()) for _ in range(2)]
        assert joined.all.wait(timeout=30)
        gate.open.set()
        errors = [each.exception(timeout=30) for each in (first, *others)]

    assert [type(each) for each in errors] == [type(None), ConnectionError, ConnectionError]
    assert looks.look(lambda: 7, lambda: LONG)


def test_who_has_no_time_looks_without_waiting_for_others_and_others_give_up() -> None:
    looks: SharedLooks[int] = SharedLooks()
    gate = Gate()
    left = iter([1e-9, 0.0])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(looks.look, gate.ask, lambda: LONG)
        assert gate.entered.wait(timeout=30)
        at_once = looks.look(lambda: 7, lambda: 0.0)
        too_late = looks.look(lambda: 7, lambda: next(left))
        gate.open.set()
        first.result(timeout=30)

    assert at_once is not None
    assert at_once.value == 7
    assert too_late is None


def test_a_pause_ends_when_somebody_rings_also_during_the_look_before() -> None:
    looks: SharedLooks[int] = SharedLooks()
    quiet = looks.look(lambda: 1, lambda: LONG)
    assert quiet is not None
    with ThreadPoolExecutor(1) as pool:
        pausing = pool.submit(looks.pause, quiet, LONG, SYSTEM_CLOCK)
        looks.rung()
        assert pausing.result(timeout=30) is None

    def ask() -> int:
        looks.rung()
        return 2

    seen = looks.look(ask, lambda: LONG)
    assert seen is not None
    assert looks.pause(seen, LONG, SYSTEM_CLOCK) is None


def test_a_task_that_is_cancelled_while_it_looks_for_all_is_replaced() -> None:
    async def play() -> list[int]:
        looks: AsyncSharedLooks[int] = AsyncSharedLooks()
        leaders, hang = list["asyncio.Task[Any] | None"](), asyncio.Event()
        looking = asyncio.Condition()

        async def ask() -> int:
            async with looking:
                leaders.append(asyncio.current_task())
                number = len(leaders)
                looking.notify_all()
            if number <= 2:
                await hang.wait()
            return number

        async def cancel_leader(number: int) -> None:
            async with looking:
                await looking.wait_for(lambda: len(leaders) == number)
            leader = leaders[number - 1]
            assert leader is not None
            leader.cancel()

        tasks = [asyncio.create_task(looks.look(ask, lambda: LONG)) for _ in range(WAITERS)]
        await cancel_leader(1)
        await cancel_leader(2)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        return [each.value for each in answers if isinstance(each, Seen)]

    assert asyncio.run(play()) == [3] * (WAITERS - 2)


# -- on real servers ------------------------------------------------------------------------------


@pytest.mark.usefixtures("never_by_itself")
def test_a_page_of_this_process_wakes_who_waits_in_it(shop: Engine) -> None:
    token = append_all(shop, STORE, [MILK])
    looked = Event()
    other = create_engine(shop.url)  # waiters and runner need not share it
    with ThreadPoolExecutor(3) as pool, looks_at(other, looked.set):
        waiters = [
            pool.submit(PROJECTIONS.wait, other, SalesByProduct, token, timeout_seconds=LONG)
            for _ in range(3)
        ]
        assert looked.wait(timeout=30)
        PROJECTIONS.run(shop, SalesByProduct)
        assert [each.result(timeout=30) for each in waiters] == [token] * 3
    other.dispose()


@pytest.mark.usefixtures("never_by_itself")
def test_a_page_of_this_process_wakes_tasks_too(shop: Engine) -> None:
    token = append_all(shop, STORE, [MILK])

    async def play() -> list[int]:
        engine = create_async_engine(shop.url)
        looked = asyncio.Event()
        with looks_at(engine.sync_engine, looked.set):
            waiters = [
                asyncio.create_task(
                    PROJECTIONS.wait_async(engine, SalesByProduct, token, timeout_seconds=LONG)
                )
                for _ in range(3)
            ]
            await looked.wait()
            await asyncio.to_thread(PROJECTIONS.run, shop, SalesByProduct)
            async with asyncio.timeout(30):
                shown = await asyncio.gather(*waiters)
        await engine.dispose()
        return [int(each) for each in shown]

    assert asyncio.run(play()) == [token] * 3


def test_many_waiters_leave_a_connection_to_the_runner(shop: Engine) -> None:
    token = append_all(shop, STORE, [MILK])
    single = create_engine(shop.url, pool_size=1, max_overflow=0, pool_timeout=60)
    looked = Event()
    with ThreadPoolExecutor(WAITERS) as pool, looks_at(single, looked.set):
        waiters = [
            pool.submit(PROJECTIONS.wait, single, SalesByProduct, token, timeout_seconds=LONG)
            for _ in range(WAITERS)
        ]
        assert looked.wait(timeout=30)
        PROJECTIONS.run(single, SalesByProduct)
        assert [each.result(timeout=30) for each in waiters] == [token] * WAITERS
    single.dispose()


def test_a_task_that_waits_may_be_cancelled_and_holds_nothing(shop: Engine) -> None:
    token = append_all(shop, STORE, [MILK])

    async def play() -> None:
        engine = create_async_engine(shop.url, pool_size=1, max_overflow=0, pool_timeout=60)
        waiters = [
            asyncio.create_task(
                PROJECTIONS.wait_async(engine, SalesByProduct, token, timeout_seconds=LONG)
            )
            for _ in range(WAITERS)
        ]
        looked = asyncio.Event()
        with looks_at(engine.sync_engine, looked.set):
            await looked.wait()
        for each in waiters[:-1]:
            each.cancel()
        cancelled = await asyncio.gather(*waiters[:-1], return_exceptions=True)
        await asyncio.to_thread(PROJECTIONS.run, shop, SalesByProduct)
        assert await waiters[-1] == token
        async with engine.connect() as conn:
            await conn.execute(text("SELECT 1"))
        await engine.dispose()
        assert {type(each) for each in cancelled} == {asyncio.CancelledError}

    asyncio.run(play())


def test_one_engine_serves_one_loop_after_the_other(shop: Engine) -> None:
    token = append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)
    engine = create_async_engine(shop.url)

    async def play() -> None:
        await PROJECTIONS.wait_async(engine, SalesByProduct, token, timeout_seconds=0)
        await engine.dispose()

    for _ in range(2):
        asyncio.run(play())
    PROJECTIONS.run(shop, SalesByProduct)  # rings for loops that are closed


def test_all_segments_have_to_show_it(shop: Engine) -> None:
    first = append_all(shop, STORE, [MILK])
    PROJECTIONS.run(shop, SalesByProduct)
    token = append_all(shop, STORE, [MILK])
    with shop.begin() as conn:
        conn.execute(text("UPDATE datapatterns.projection_shard SET mask = 1"))
        conn.execute(
            text(
                "INSERT INTO datapatterns.projection_shard (name, version, shard, mask, position)"
                " SELECT name, version, 1, mask, :position FROM datapatterns.projection_shard"
            ),
            {"position": token},
        )
    with pytest.raises(ReadModelBehindError) as behind:
        PROJECTIONS.wait(shop, SalesByProduct, token, timeout_seconds=0)
    answer = PROJECTIONS.query(
        shop, SalesByProduct, lambda _: None, after=token, timeout_seconds=0, stale="serve"
    )

    assert behind.value.position == first
    assert (answer.position, answer.is_stale) == (first, True)
    assert PROJECTIONS.wait(shop, SalesByProduct, first, timeout_seconds=0) == first


# -- in Redis -------------------------------------------------------------------------------------


def test_redis_is_asked_in_a_thread_or_by_its_client_for_asyncio(
    engine: Engine, redis_client: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    projections = Projections(STORE, redis=redis_client)
    token = append_all(engine, STORE, [MILK])
    projections.run(engine, Dashboard)
    the_loop_runs = Event()
    execute = Pipeline.execute

    def slow(pipe: Pipeline, raise_on_error: bool = True) -> object:  # noqa: FBT001, FBT002 -- redis-py's
        assert the_loop_runs.wait(timeout=30)
        return execute(pipe, raise_on_error)

    monkeypatch.setattr(Pipeline, "execute", slow)

    async def play() -> None:
        async_engine, client = create_async_engine(engine.url), AsyncRedis.from_url(redis_url)
        waiting = asyncio.create_task(
            projections.wait_async(async_engine, Dashboard, token, timeout_seconds=LONG)
        )
        by_client = await projections.wait_async(
            async_engine, Dashboard, token, timeout_seconds=LONG, redis=client
        )
        the_loop_runs.set()
        assert await waiting == by_client == token
        await client.aclose()
        await async_engine.dispose()

    asyncio.run(play())


def test_an_answer_of_redis_has_the_same_shape(
    engine: Engine, redis_client: Redis, redis_url: str
) -> None:
    projections = Projections(STORE, redis=redis_client)
    shown = append_all(engine, STORE, [MILK])
    with pytest.raises(ReadModelBehindError):
        projections.query_view(
            engine, Dashboard, lambda view: view.top("best_sellers"), timeout_seconds=0
        )
    projections.run(engine, Dashboard)
    fresh = projections.query_view(
        engine, Dashboard, lambda view: view.top("best_sellers"), after=shown
    )
    token = append_all(engine, STORE, [MILK])

    async def play() -> None:
        async_engine, client = create_async_engine(engine.url), AsyncRedis.from_url(redis_url)
        served = await projections.query_view_async(
            async_engine,
            client,
            Dashboard,
            lambda view: view.top("best_sellers"),
            after=token,
            timeout_seconds=0,
            stale="serve",
        )
        with pytest.raises(ReadModelBehindError):
            await projections.query_view_async(
                async_engine,
                client,
                Dashboard,
                lambda view: view.hash("last_basket"),
                max_staleness_seconds=0,
                timeout_seconds=0,
            )
        await client.aclose()
        await async_engine.dispose()
        assert (served.value, served.position) == ([("milk", 1)], shown)
        assert (served.positions_behind, served.is_stale) == (1, True)

    asyncio.run(play())
    assert (fresh.value, fresh.position) == ([("milk", 1)], shown)
    assert (fresh.positions_behind, fresh.seconds_behind, fresh.is_stale) == (0, 0.0, False)


def test_all_of_an_answer_of_redis_is_of_one_moment(engine: Engine, redis_client: Redis) -> None:
    projections = Projections(STORE, redis=redis_client)
    append_all(engine, STORE, [MILK])
    projections.run(engine, Dashboard)
    asked = 0

    def ask(view: RedisView) -> tuple[object, object]:
        nonlocal asked
        asked += 1
        before = view.top("best_sellers")
        if asked == 1:
            append_all(engine, STORE, [MILK])
            projections.run(engine, Dashboard)
        return before, view.top("best_sellers")

    answer = projections.query_view(engine, Dashboard, ask)

    assert answer.value == ([("milk", 2)], [("milk", 2)])
    assert (asked, answer.position) == (2, 2)


def test_a_read_model_of_redis_that_is_another_databases_is_no_answer(
    engine: Engine, redis_client: Redis
) -> None:
    projections = Projections(STORE, redis=redis_client)
    token = append_all(engine, STORE, [MILK])
    projections.run(engine, Dashboard)
    with engine.begin() as conn:
        conn.execute(text("UPDATE datapatterns.projection_shard SET build = gen_random_uuid()"))

    with pytest.raises(ReadModelBehindError) as behind:
        projections.query_view(
            engine,
            Dashboard,
            lambda view: view.top("best_sellers"),
            after=token,
            timeout_seconds=0,
            stale="serve",
        )
    with pytest.raises(ForeignTokenError):
        projections.query_view(
            engine,
            Dashboard,
            lambda view: view.top("best_sellers"),
            after=Token.parse("1.00000000"),
        )

    assert behind.value.position is None


def test_a_redis_that_is_away_is_told_as_such(engine: Engine) -> None:
    away = Redis(host="127.0.0.1", port=1, socket_connect_timeout=1)
    projections = Projections(STORE, redis=away)
    token = append_all(engine, STORE, [MILK])

    with pytest.raises(ServerUnavailableError):
        projections.query_view(engine, Dashboard, lambda view: view.hash("x"), after=token)
    with pytest.raises(ServerUnavailableError):
        projections.wait(engine, Dashboard, token, timeout_seconds=LONG)
