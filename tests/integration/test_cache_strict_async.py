"""Tasks that commit only behind a fence."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis import Redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from datapatterns.cache_aside import AsyncCache
from datapatterns.embedded import ValkeyServer
from datapatterns.errors import UnfencedWriteError
from datapatterns.failpoints import armed
from tests.fixtures.caches import PATIENT, create_products, name_of, open_cache, rename

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


async def by_writes(cache: AsyncCache, _: AsyncEngine) -> None:
    async with cache.writes() as conn:
        await conn.run_sync(rename, 1, "second")
        await conn.run_sync(cache.invalidate_in, 1)


async def by_a_session(cache: AsyncCache, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await (await session.connection()).run_sync(rename, 1, "second")
        await session.run_sync(cache.invalidate_in, 1)
        await session.commit()


async def by_a_plain_connection(cache: AsyncCache, engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.run_sync(rename, 1, "second")
        await conn.run_sync(cache.invalidate_in, 1)


Write = Callable[[AsyncCache, AsyncEngine], Awaitable[None]]
every_writer = pytest.mark.parametrize("write", [by_writes, by_a_session, by_a_plain_connection])


def run(
    redis_url: str, engine: Engine, act: Callable[[AsyncCache, AsyncEngine], Awaitable[None]]
) -> None:
    async def run() -> None:
        own = create_async_engine(engine.url)
        cache = AsyncCache(redis_url, own, name="product", policy=PATIENT, strict=True)
        try:
            await act(cache, own)
        finally:
            await cache.close()
            await own.dispose()

    asyncio.run(run())


async def read(cache: AsyncCache) -> str | None:
    async def load(conn: AsyncConnection) -> str | None:
        return await conn.run_sync(name_of, 1)

    return await cache.get_or_load(1, load)


@every_writer
def test_while_a_task_commits_nobody_is_served_what_is_there_nor_stores_it(
    write: Write, engine: Engine, redis_client: Redis, redis_url: str
) -> None:
    create_products(engine)
    with open_cache(redis_client, engine) as reader:

        def look() -> None:
            filled = reader.stats().filled
            seen.append(reader.get_or_load(1, lambda conn: name_of(conn, 1)))
            seen.append(reader.stats().filled - filled)

        async def act(cache: AsyncCache, own: AsyncEngine) -> None:
            assert await read(cache) == "first"
            with armed("cache.write-fenced", look):
                await write(cache, own)
            if write is by_a_plain_connection:
                await cache.relay()
            assert not redis_client.keys("*:fences:*")
            assert await read(cache) == "second"

        seen: list[object] = []
        run(redis_url, engine, act)
    assert seen == ["first", 0]


@every_writer
def test_without_a_fence_no_task_commits(
    write: Write, engine: Engine, valkey_server: ValkeyServer
) -> None:
    create_products(engine)

    async def act(cache: AsyncCache, own: AsyncEngine) -> None:
        assert await read(cache) == "first"
        await asyncio.to_thread(valkey_server.stop)
        with pytest.raises(UnfencedWriteError):
            await write(cache, own)
        assert await read(cache) == "first"
        async with own.connect() as conn:
            assert await conn.scalar(text("SELECT pg_current_xact_id_if_assigned() IS NULL"))

    run(valkey_server.url, engine, act)


def test_a_commit_that_the_server_refuses_takes_the_fence_down(
    engine: Engine, redis_client: Redis, redis_url: str
) -> None:
    create_products(engine)
    with engine.begin() as conn:
        conn.execute(text("UPDATE product SET name = 'second' WHERE id > 1"))
        conn.execute(text("DELETE FROM product WHERE id > 2"))
        conn.execute(text("ALTER TABLE product ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED"))

    async def act(cache: AsyncCache, own: AsyncEngine) -> None:
        assert await read(cache) == "first"
        with pytest.raises(IntegrityError):
            await by_a_session(cache, own)
        assert not redis_client.keys("*:fences:*")
        assert await read(cache) == "first"

    run(redis_url, engine, act)


@pytest.mark.usefixtures("redis_client")  # an empty one
def test_a_task_that_is_cancelled_behind_its_fence_has_not_committed(
    engine: Engine, redis_url: str
) -> None:
    create_products(engine)

    async def act(cache: AsyncCache, own: AsyncEngine) -> None:
        assert await read(cache) == "first"
        loop, task = asyncio.get_running_loop(), asyncio.create_task(by_writes(cache, own))
        fences = cache._backing._fences  # noqa: SLF001 -- the thread that puts the fence up
        assert fences is not None
        call_all = fences.links.call_all

        def cancelled_meanwhile(*args: object, **names: object) -> object:
            loop.call_soon_threadsafe(task.cancel)
            return call_all(*args, **names)  # type: ignore[arg-type]  # as they were given

        fences.links.call_all = cancelled_meanwhile  # type: ignore[method-assign, assignment]
        with pytest.raises(asyncio.CancelledError):
            await task
        fences.links.call_all = call_all  # type: ignore[method-assign]
        async with own.connect() as conn:
            assert await conn.run_sync(name_of, 1) == "first"

    run(redis_url, engine, act)
