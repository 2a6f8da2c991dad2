"""Values kept in the process, for event loops: one, several, and beside threads."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from threading import Barrier, Thread
from threading import enumerate as threads

import pytest
from redis import Redis
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns.cache_aside import AsyncCache
from tests.fixtures.caches import (
    ENOUGH_SECONDS,
    Product,
    create_products,
    load_product,
    open_cache,
    rename,
    until,
)
from tests.fixtures.local_tiers import LOCAL, is_kept, trackers, until_kept

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@asynccontextmanager
async def open_async_cache(redis: str, engine: Engine) -> AsyncIterator[AsyncCache]:
    async_engine = create_async_engine(engine.url)
    cache = AsyncCache(redis, async_engine, name="product", policy=LOCAL)
    yield cache
    await cache.close()
    await async_engine.dispose()


async def load(conn: AsyncConnection, product_id: int) -> Product | None:
    return await conn.run_sync(load_product, product_id)


async def kept(cache: AsyncCache, read: Callable[[], Awaitable[object]]) -> None:
    """Read until it comes from memory, each time."""
    async with asyncio.timeout(ENOUGH_SECONDS):
        while True:
            before = cache.stats().local_hits
            for _ in range(3):
                await read()
            if cache.stats().local_hits == before + 3:
                return
            await asyncio.sleep(0)


@pytest.fixture
def redis(redis_url: str, redis_client: Redis, engine: Engine) -> str:
    create_products(engine)
    assert redis_client.dbsize() == 0
    return redis_url


def test_hits_are_kept_and_ones_own_write_is_seen_at_once(redis: str, engine: Engine) -> None:
    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:
            product = cache.cached(load)
            await kept(cache, lambda: product(1))
            assert await product(1) is await product(1)

            async with cache.writes() as conn:
                await conn.run_sync(rename, 1, "second")
                await conn.run_sync(product.invalidate_in, 1)
            assert await product(1) == Product(1, "second")
            await kept(cache, lambda: product.get_many([1]))
            await kept(cache, lambda: product(product_id=1))

    asyncio.run(scenario())


def test_many_at_once_are_served_from_memory(redis: str, engine: Engine) -> None:
    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:
            product = cache.cached(load)
            await kept(cache, lambda: product(1))
            before = cache.stats().local_hits
            assert set(await asyncio.gather(*(product(1) for _ in range(100)))) == {
                Product(1, "first")
            }
            assert cache.stats().local_hits == before + 100

    asyncio.run(scenario())


def test_what_a_thread_writes_is_gone_from_the_loop_and_the_other_way_round(
    redis: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are of one process, so neither waits to be told."""
    monkeypatch.setattr("datapatterns.cache_aside.tracking._Listener._pushed", lambda *_: None)

    async def scenario() -> None:
        with open_cache(redis, engine, LOCAL) as sync_cache:
            sync_product = sync_cache.cached(load_product)
            async with open_async_cache(redis, engine) as cache:
                product = cache.cached(load)
                await kept(cache, lambda: product(1))
                await asyncio.to_thread(
                    until_kept, sync_cache, lambda: sync_product(1), is_told=False
                )

                with sync_cache.writes() as conn:
                    rename(conn, 1, "second")
                    sync_product.invalidate_in(conn, 1)
                assert await product(1) == Product(1, "second")

                await kept(cache, lambda: product(1))
                async with cache.writes() as aconn:
                    await aconn.run_sync(rename, 1, "third")
                    await aconn.run_sync(product.invalidate_in, 1)
                assert sync_product(1) == Product(1, "third")

    asyncio.run(scenario())


def test_several_loops_hear_on_one_connection(
    redis: str, engine: Engine, redis_client: Redis
) -> None:
    before = set(threads())
    told: list[str] = []

    async def scenario(number: int) -> None:
        async with open_async_cache(redis, engine) as cache:
            product = cache.cached(load)
            await kept(cache, lambda: product(1))
            await asyncio.to_thread(are_all_ready.wait, ENOUGH_SECONDS)
            if number == 0:
                told.append(str(len(trackers(redis_client))))
                async with cache.writes() as conn:
                    await conn.run_sync(rename, 1, "second")
                    await conn.run_sync(product.invalidate_in, 1)
            async with asyncio.timeout(ENOUGH_SECONDS):
                while (await product(1)) != Product(1, "second"):
                    pass

    are_all_ready = Barrier(3)
    loops = [Thread(target=asyncio.run, args=(scenario(number),)) for number in range(3)]
    for each in loops:
        each.start()
    for each in loops:
        each.join(2 * ENOUGH_SECONDS)

    assert told == ["1"]
    until(lambda: trackers(redis_client) == [])
    assert set(threads()) == before


def test_anothers_write_reaches_a_busy_loop(redis: str, engine: Engine) -> None:
    async def scenario() -> None:
        with open_cache(redis, engine) as another:
            async with open_async_cache(redis, engine) as cache:
                product = cache.cached(load)
                await kept(cache, lambda: product(1))
                await asyncio.to_thread(another.invalidate, 1)
                await asyncio.to_thread(until, lambda: not is_kept(cache, "product:i1"))
                assert await product(1) == Product(1, "first")

    asyncio.run(scenario())
