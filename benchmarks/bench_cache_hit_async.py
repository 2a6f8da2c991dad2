"""The same hit from asyncio, one after the other and 100 at once, beside ``redis.asyncio``.

And beside ``cashews`` and ``aiocache``. All use the same socket; so that ``aiocache`` can, it is
given its client.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import product
from typing import Any

from aiocache import RedisCache
from aiocache.serializers import BaseSerializer
from cashews import Cache, register_backend
from cashews.backends.redis import Redis as CashewsRedis
from cashews.picklers import PicklerType
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from benchmarks.interleaving import Claim, Contestant
from benchmarks.pages import SIZES, TTL_SECONDS, Page, decode, encode, page_of
from datapatterns import DataLayer
from datapatterns.cache_aside import AsyncCache, CachePolicy

CASES = tuple(product(SIZES, (1, 100)))
"""How many bytes, and how many tasks at once."""

OPERATIONS = 2_000

Read = Callable[[int], Awaitable[object]]


@contextmanager
def claim(case: tuple[int, int]) -> Iterator[Claim]:
    """Tasks of one event loop read a key each that is there, over a Unix socket."""
    size, tasks = case
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        runner = stack.enter_context(closing(asyncio.Runner()))
        url, page = str(layer.settings.redis_url), page_of(size)
        engine = create_async_engine(layer.engine.url)
        cache = AsyncCache(url, engine, name="page", policy=CachePolicy(ttl_seconds=TTL_SECONDS))
        client: Any = Redis.from_url(url)
        ours, limit = _ours(cache, page), _limit(client)
        cashews, aiocache = _cashews(url, page), _aiocache(client)
        for number in range(tasks):
            runner.run(client.set(f"bare:{number}", encode(page)))
            runner.run(client.set(f"aiocache:{number}", encode(page)))

        def run(read: Read) -> Callable[[], int]:
            return partial(_run, runner, read, tasks)

        yield Claim(
            f"async cache hit, {size} bytes, {tasks} at once",
            "hits",
            [
                Contestant("cached function", "ours", run(ours)),
                Contestant("redis.asyncio get and decode", "limit", run(limit)),
                Contestant("cashews", "rival", run(cashews)),
                Contestant("aiocache, msgspec", "rival", run(aiocache)),
            ],
        )
        runner.run(cache.close())
        runner.run(client.aclose())
        runner.run(engine.dispose())


def _run(runner: asyncio.Runner, read: Read, tasks: int) -> int:
    async def some(number: int) -> None:
        for _ in range(OPERATIONS // tasks):
            await read(number)

    async def all_at_once() -> None:
        await asyncio.gather(*map(some, range(tasks)))

    runner.run(all_at_once())
    return OPERATIONS


def _ours(cache: AsyncCache, page: Page) -> Read:
    @cache.cached
    async def cached(conn: AsyncConnection, product_id: int) -> Page:  # noqa: ARG001 -- the key
        return page

    return cached


def _limit(client: Any) -> Read:  # noqa: ANN401 -- redis-py's types are of both colours
    async def read(number: int) -> object:
        return decode(await client.get(f"bare:{number}"))

    return read


def _cashews(url: str, page: Page) -> Read:
    register_backend("unix", CashewsRedis, pass_uri=True, pickler=PicklerType.DEFAULT)
    cache = Cache()
    cache.setup(url)

    @cache(ttl=TTL_SECONDS, key="page:{product_id}")  # type: ignore[untyped-decorator]
    async def cached(product_id: int) -> Page:  # noqa: ARG001 -- the key
        return page

    return partial(cached)


def _aiocache(client: Any) -> Read:  # noqa: ANN401
    class Msgspec(BaseSerializer):  # type: ignore[misc]  # without types
        DEFAULT_ENCODING = None

        def loads(self, value: bytes | None) -> object:
            return None if value is None else decode(value)

    cache = RedisCache(serializer=Msgspec())
    cache.client = client

    async def read(number: int) -> object:
        return await cache.get(f"aiocache:{number}")

    return read
