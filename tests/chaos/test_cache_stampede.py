"""Many callers of many processes want one cold entry: one load, whoever dies, fails or hangs."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from redis import Redis
from sqlalchemy import Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns.cache_aside import AsyncCache, CachePolicy
from datapatterns.errors import CacheBusyError
from tests.fixtures.caches import (
    ENOUGH_SECONDS,
    Gate,
    create_products,
    name_of,
    open_cache,
    until,
)
from tests.fixtures.crowds import Crowd, Member, gathered

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.chaos]

PROCESSES, CALLERS = (4, 50) if settings.get_current_profile_name() == "nightly" else (2, 10)
COLOURS = pytest.mark.parametrize("in_tasks", [False, True], ids=["threads", "tasks"])
IMPATIENT = CachePolicy(
    redis_timeout_seconds=5,
    vouched_seconds=60,
    lease_seconds=ENOUGH_SECONDS,
    wait_seconds=0.2,
    loads_at_once=2,
)


@pytest.fixture
def loads(engine: Engine, redis_client: Redis) -> Engine:
    """A database that counts loads, beside an empty cache of a known server."""
    create_products(engine)
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE loads (pid int)"))
    with open_cache(redis_client, engine) as cache:
        assert cache.relay().is_leading
    return engine


def pids_of(engine: Engine) -> list[int]:
    with engine.connect() as conn:
        return list(conn.scalars(text("SELECT pid FROM loads")))


def crowd_of(engine: Engine, redis_url: str, *, in_tasks: bool, first_hangs: bool = False) -> Crowd:
    url = engine.url.render_as_string(hide_password=False)
    return Crowd(url, redis_url, CALLERS, in_tasks=in_tasks, first_hangs=first_hangs)


@COLOURS
def test_all_callers_of_all_processes_cost_one_load(
    loads: Engine, redis_url: str, *, in_tasks: bool
) -> None:
    with gathered(crowd_of(loads, redis_url, in_tasks=in_tasks), PROCESSES) as members:
        called = [member.called() for member in members]

    assert [each.values for each in called] == [{"first"}] * PROCESSES
    assert sum(each.loads for each in called) == len(pids_of(loads)) == 1


@COLOURS
def test_a_process_that_is_killed_while_it_loads_costs_one_more_load(
    loads: Engine, redis_url: str, *, in_tasks: bool
) -> None:
    crowd = crowd_of(loads, redis_url, in_tasks=in_tasks, first_hangs=True)
    with gathered(crowd, PROCESSES + 1) as members:
        until(lambda: len(pids_of(loads)) == 1)
        [holder] = pids_of(loads)
        survivors = [member for member in members if not _is_killed(member, holder)]
        called = [member.called() for member in survivors]

    assert len(survivors) == PROCESSES
    assert [each.values for each in called] == [{"first"}] * PROCESSES
    assert sum(each.loads for each in called) == 1
    assert len(pids_of(loads)) == 2


def _is_killed(member: Member, holder: int) -> bool:
    if member.pid == holder:
        member.kill()
        return True
    return False


def test_a_load_that_fails_in_another_process_is_not_waited_out(
    engine: Engine, redis_client: Redis
) -> None:
    """Its lease would last for as long as a test may."""
    create_products(engine)
    policy = CachePolicy(
        redis_timeout_seconds=5,
        vouched_seconds=60,
        lease_seconds=10 * ENOUGH_SECONDS,
        wait_seconds=10 * ENOUGH_SECONDS,
    )
    gate = Gate()

    def fail(_: Connection) -> str:
        gate.stop_here()
        raise ZeroDivisionError

    with (
        open_cache(redis_client, engine, policy) as failing,
        open_cache(redis_client, engine, policy) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        failed = pool.submit(failing.get_or_load, 1, fail)
        gate.wait_until_reached()
        waiting = pool.submit(other.get_or_load, 1, lambda conn: name_of(conn, 1))
        until(lambda: other.stats().waits > 0)
        gate.open()

        assert waiting.result(ENOUGH_SECONDS) == "first"
        with pytest.raises(ZeroDivisionError):
            failed.result(ENOUGH_SECONDS)
        assert (other.stats().loads, other.stats().filled) == (1, 1)


def test_a_load_that_hangs_takes_nobody_else_along(engine: Engine, redis_client: Redis) -> None:
    create_products(engine)
    gate, others = Gate(), range(2, 12)

    def hang(conn: Connection) -> str | None:
        gate.stop_here()
        return name_of(conn, 1)

    with open_cache(redis_client, engine, IMPATIENT) as cache, ThreadPoolExecutor(24) as pool:
        hanging = [pool.submit(cache.get_or_load, 1, hang) for _ in range(12)]
        gate.wait_until_reached()
        going_on = pool.map(lambda n: cache.get_or_load(n, lambda conn: name_of(conn, n)), others)

        assert list(going_on) == ["first"] * len(others)
        assert cache.stats().filled == len(others)
        # One loads under the lease, two more without; the others had their deadline.
        until(lambda: sum(future.done() for future in hanging) == 9)
        gate.open()
        errors = [future.exception(ENOUGH_SECONDS) for future in hanging]
        assert [type(error) for error in errors if error] == [CacheBusyError] * 9
        assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "first"


def test_a_task_that_hangs_takes_no_other_along(
    engine: Engine, redis_client: Redis, redis_url: str
) -> None:
    create_products(engine)
    assert redis_client.dbsize() == 0

    async def scenario() -> None:
        own = create_async_engine(engine.url)
        cache = AsyncCache(redis_url, own, name="product", policy=IMPATIENT)
        reached, opened = asyncio.Event(), asyncio.Event()

        async def hang(conn: AsyncConnection) -> str | None:
            reached.set()
            await opened.wait()
            return await conn.run_sync(name_of, 1)

        async def read(number: int) -> str | None:
            async def load(conn: AsyncConnection) -> str | None:
                return await conn.run_sync(name_of, number)

            return await cache.get_or_load(number, load)

        hanging = [asyncio.create_task(cache.get_or_load(1, hang)) for _ in range(12)]
        await asyncio.wait_for(reached.wait(), ENOUGH_SECONDS)
        going_on = [asyncio.create_task(read(number)) for number in range(2, 12)]

        assert await asyncio.gather(*going_on) == ["first"] * 10
        async with asyncio.timeout(ENOUGH_SECONDS):
            while sum(task.done() for task in hanging) < 9:
                await asyncio.wait(hanging, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
        opened.set()
        errors = await asyncio.gather(*hanging, return_exceptions=True)
        assert [type(error) for error in errors if isinstance(error, Exception)] == (
            [CacheBusyError] * 9
        )
        assert await read(1) == "first"
        await cache.close()
        await own.dispose()

    asyncio.run(scenario())
