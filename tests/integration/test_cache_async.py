"""The same cache from asyncio."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis import Redis
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from datapatterns.cache_aside import AsyncCache, CacheAudit, CachePolicy, CacheViolation
from datapatterns.cache_aside.driver_async import AsyncLoader
from datapatterns.testing import wait_until
from tests.fixtures.caches import (
    ENOUGH_SECONDS,
    PATIENT,
    Product,
    create_products,
    load_product,
    open_cache,
    rename,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@asynccontextmanager
async def open_async_cache(
    redis: str, engine: Engine, policy: CachePolicy = PATIENT
) -> AsyncIterator[AsyncCache]:
    async_engine = create_async_engine(engine.url)
    cache = AsyncCache(redis, async_engine, name="product", policy=policy)
    yield cache
    await cache.close()
    await async_engine.dispose()


@pytest.fixture
def redis(redis_url: str, redis_client: Redis, engine: Engine) -> str:
    create_products(engine)
    assert redis_client.dbsize() == 0
    return redis_url


async def load(conn: AsyncConnection, product_id: int) -> Product | None:
    return await conn.run_sync(load_product, product_id)


def test_a_value_is_loaded_once_and_forgotten_by_a_write(redis: str, engine: Engine) -> None:
    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:
            product = cache.cached(load)
            assert await product(1) == await product(product_id=1) == Product(1, "first")
            assert (cache.stats().loads, cache.stats().hits) == (1, 1)

            async with cache.writes() as conn:
                await conn.run_sync(rename, 1, "second")
                await conn.run_sync(product.invalidate_in, 1)
                assert await product(1) == Product(1, "first")
            assert await product(1) == Product(1, "second")

            await product.invalidate(1)
            assert await product(1) == Product(1, "second")
            assert cache.stats().loads == 3

    asyncio.run(scenario())


def test_both_colours_share_their_entries(redis: str, engine: Engine) -> None:
    async def read() -> None:
        async with open_async_cache(redis, engine) as cache:
            assert await cache.cached(load)(1) == Product(1, "first")

    asyncio.run(read())
    with open_cache(redis, engine) as cache:
        assert cache.cached(load_product)(1) == Product(1, "first")
        assert cache.stats().loads == 0


def test_two_hundred_tasks_cost_one_load_though_the_first_is_cancelled(
    redis: str, engine: Engine
) -> None:
    async def scenario() -> None:
        loading, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(conn: AsyncConnection) -> str:
            loading.set()
            await go_on.wait()
            return str((await conn.execute(text("SELECT 'loaded'"))).scalar_one())

        async with open_async_cache(redis, engine) as cache:
            first = asyncio.create_task(cache.get_or_load(1, slowly))
            await loading.wait()
            others = [asyncio.create_task(cache.get_or_load(1, slowly)) for _ in range(200)]
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            go_on.set()
            async with asyncio.timeout(ENOUGH_SECONDS):
                values = await asyncio.gather(*others)

            assert first.cancelled()
            assert set(values) == {"loaded"}
            assert cache.stats().loads == 1

    asyncio.run(scenario())


def test_who_comes_after_the_fill_was_sent_looks_for_himself(
    redis: str, engine: Engine, redis_client: Redis
) -> None:
    """What was stored may be invalidated again before the one who stored it has learned of it."""

    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:

            async def load_and_pause(conn: AsyncConnection) -> Product | None:
                redis_client.client_pause(20_000, all=False)  # no write is carried out
                return await load(conn, 1)

            async def get(loader: AsyncLoader[Product | None]) -> Product | None:
                return await cache.get_or_load(1, loader, value_type=Product)

            await cache.get_or_load(2, lambda conn: load(conn, 2), value_type=Product)
            first = asyncio.create_task(get(load_and_pause))
            try:
                await until(lambda: redis_client.info("clients")["blocked_clients"] == 1)
                late = asyncio.create_task(get(lambda conn: load(conn, 1)))
                # What a caller that waits does can only be seen from inside.
                [flight] = cache._driver._flights.values()  # noqa: SLF001
                await until(lambda: len(flight.task._callbacks) == 3)  # noqa: SLF001 -- CPython's
            finally:
                redis_client.client_unpause()
            assert await first == await late == Product(1, "first")
            assert (cache.stats().loads, cache.stats().joined) == (2, 0)

    asyncio.run(scenario())


async def until(condition: Callable[[], bool]) -> None:
    """Wait as other tests do, while the loop goes on."""
    await asyncio.to_thread(wait_until, condition, deadline_seconds=ENOUGH_SECONDS)


def test_callers_of_another_type_do_not_get_each_others_value(redis: str, engine: Engine) -> None:
    async def scenario() -> None:
        loading, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(_: AsyncConnection) -> str:
            loading.set()
            await go_on.wait()
            return "plain"

        async with open_async_cache(redis, engine) as cache:
            plain = asyncio.create_task(cache.get_or_load(1, slowly))
            await loading.wait()
            other = asyncio.create_task(
                cache.get_or_load(1, lambda conn: load(conn, 1), value_type=Product)
            )
            await until(lambda: cache.stats().waits > 0)
            go_on.set()

            assert (await plain, await other) == ("plain", Product(1, "first"))

    asyncio.run(scenario())


def test_a_fill_after_an_invalidation_is_refused(redis: str, engine: Engine) -> None:
    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:

            async def overtaken(conn: AsyncConnection) -> str:
                found = await load(conn, 1)
                assert found is not None
                async with cache.writes() as writing:
                    await writing.run_sync(rename, 1, "second")
                    await writing.run_sync(cache.invalidate_in, 1)
                return found.name

            assert await cache.get_or_load(1, overtaken) == "first"
            assert cache.stats().refused == 1
            product = await cache.get_or_load(1, lambda conn: load(conn, 1), value_type=Product)
            assert product == Product(1, "second")

    asyncio.run(scenario())


def test_errors_reach_the_caller_and_free_the_lease(
    redis: str, engine: Engine, redis_client: Redis
) -> None:
    async def fail(_: AsyncConnection) -> int:
        raise ZeroDivisionError

    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:
            with pytest.raises(ZeroDivisionError):
                await cache.get_or_load(1, fail)

    asyncio.run(scenario())
    assert redis_client.keys("*:lease:*") == []


def test_a_silent_redis_costs_no_page_and_no_write(engine: Engine) -> None:
    create_products(engine)

    async def scenario() -> None:
        async with open_async_cache("redis://127.0.0.1:1", engine, CachePolicy()) as cache:
            product = cache.cached(load)
            assert await product(1) == Product(1, "first")
            async with cache.writes() as conn:
                await conn.run_sync(rename, 1, "second")
                await conn.run_sync(product.invalidate_in, 1)
            assert await product(1) == Product(1, "second")

    asyncio.run(scenario())
    with engine.connect() as conn:
        assert conn.scalar(text("SELECT count(*) FROM datapatterns.cache_outbox")) == 1


def test_the_relay_runs_beside_the_loop(redis: str, engine: Engine) -> None:
    def write(conn: Connection, cache: AsyncCache) -> None:
        rename(conn, 1, "second")
        cache.invalidate_in(conn, 1)

    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:
            product = cache.cached(load)
            await product(1)
            other: AsyncEngine = create_async_engine(engine.url)
            async with other.begin() as conn:
                await conn.run_sync(write, cache)
            await other.dispose()

            assert (await cache.relay()).entries == 1
            assert await product(1) == Product(1, "second")

    asyncio.run(scenario())


def test_an_audit_loads_in_tasks(redis: str, engine: Engine) -> None:
    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:
            product = cache.cached(load)
            await product.get_many([1, 2, 99])
            assert await product.audit() == CacheAudit(3, 0, ())
            with engine.begin() as conn:
                rename(conn, 2, "second")

            looked_at = list[int]()
            found = await product.audit(repair=True, on_checked=looked_at.append)

            wrong = CacheViolation(2, Product(2, "first"), Product(2, "second"))
            assert found == CacheAudit(3, 0, (wrong,))
            assert looked_at == [3]
            assert await product(2) == Product(2, "second")
            assert cache.stats().violations == 1

    asyncio.run(scenario())


def test_an_audit_whose_loader_takes_too_long_fails_as_that_does(
    redis: str, engine: Engine
) -> None:
    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:
            fails = False

            async def slow(conn: AsyncConnection, product_id: int) -> Product | None:
                if fails:
                    raise TimeoutError("too slow")
                return await load(conn, product_id)

            product = cache.cached(slow)
            await product(1)
            fails = True
            with pytest.raises(TimeoutError, match="too slow"):
                await product.audit()

    asyncio.run(scenario())


def test_an_audit_that_is_cancelled_leaves_no_thread(redis: str, engine: Engine) -> None:
    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:
            began, hangs = asyncio.Event(), False

            async def slow(conn: AsyncConnection, product_id: int) -> Product | None:
                if hangs:
                    began.set()
                    await asyncio.Event().wait()
                return await load(conn, product_id)

            product = cache.cached(slow)
            await product(1)
            hangs = True
            audit = asyncio.create_task(product.audit())
            await began.wait()
            audit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await audit

    asyncio.run(scenario())  # which waits for threads


def test_tables_are_captured_and_released_on_async_connections(redis: str, engine: Engine) -> None:
    table = Table("product", MetaData(), Column("id", Integer, primary_key=True))

    async def scenario() -> None:
        async with open_async_cache(redis, engine) as cache:
            product = cache.cached(load)
            async with cache.writes() as conn:
                await cache.capture(conn, table)
            await cache.relay()
            await product(1)
            with engine.begin() as other:
                rename(other, 1, "second")
            await cache.relay()
            assert await product(1) == Product(1, "second")

            async with cache.writes() as conn:
                await cache.release(conn, table)
            with engine.begin() as other:
                rename(other, 1, "third")
            await cache.relay()
            assert await product(1) == Product(1, "second")

    asyncio.run(scenario())
