"""Times that one function's results or one value live by, in place of the cache's."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns.cache_aside import AsyncCache, Cache, CachePolicy, ValueOptions
from datapatterns.cache_aside import policy as policies
from datapatterns.errors import SettingsError
from tests.fixtures.caches import PATIENT, create_products, load_product, name_of, open_cache
from tests.fixtures.local_tiers import LOCAL, tier_of, until_kept, until_told

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

STEADY = replace(PATIENT, ttl_seconds=300, negative_seconds=30, jitter=0, early_refresh=0)


@pytest.fixture
def cache(request: pytest.FixtureRequest, engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    request.getfixturevalue("products")
    with open_cache(redis_client, engine, STEADY) as cache:
        yield cache


@pytest.fixture
def products(engine: Engine) -> None:
    create_products(engine)


def lives(redis: Redis) -> list[int]:
    """How long the values that are there still live, in seconds, rounded up to tens."""
    lives_ms = [redis.pttl(key) for key in redis.keys("*:value:*")]
    return sorted(-(-life_ms // 10_000) * 10 for life_ms in lives_ms)


def name(conn: Connection) -> str | None:
    return name_of(conn, 1)


def test_a_calls_times_come_before_the_functions_and_those_before_the_caches(
    cache: Cache, redis_client: Redis
) -> None:
    product = cache.cached(ttl_seconds=600, negative_seconds=60)(load_product)

    product(1)
    assert product(99) is None
    cache.get_or_load("own", name, ttl_seconds=900)
    cache.get_or_load("plain", name)
    cache.get_or_load("nothing", lambda _: None, negative_seconds=90)

    assert lives(redis_client) == [60, 90, 300, 600, 900]


def test_stale_time_is_added_and_several_are_kept_alike(cache: Cache, redis_client: Redis) -> None:
    def load(_: Connection, keys: list[int]) -> dict[int, str]:
        return {key: "there" for key in keys if key != 3}

    cache.get_many([1, 2, 3], load, ttl_seconds=100, stale_seconds=50, negative_seconds=20)

    assert lives(redis_client) == [20, 150, 150]


def test_many_of_a_function_and_loads_anew_live_by_its_times(
    cache: Cache, redis_client: Redis
) -> None:
    product = cache.cached(tags=lambda product_id: [f"shop {product_id}"], ttl_seconds=600)(
        load_product
    )

    product.get_many([1, 2])
    product.refresh(1)

    assert lives(redis_client) == [600, 600]


def test_a_read_in_a_callers_snapshot_lives_by_its_times(
    cache: Cache, engine: Engine, redis_client: Redis
) -> None:
    cache.relay()
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        cache.get_or_load(1, name, within=conn, ttl_seconds=600)

    assert lives(redis_client) == [600]


def test_the_times_of_whoever_stores_a_value_count(cache: Cache, redis_client: Redis) -> None:
    cache.get_or_load(1, name, ttl_seconds=600)

    assert cache.get_or_load(1, name, ttl_seconds=60) == "first"

    assert cache.stats().loads == 1
    assert lives(redis_client) == [600]


def test_nothing_is_remembered_of_absence_that_a_call_does_not_want(cache: Cache) -> None:
    for _ in range(2):
        assert cache.get_or_load("nothing", lambda _: None, negative_seconds=0) is None

    assert cache.stats().loads == 2


def test_how_eagerly_a_value_is_loaded_anew_is_the_readers_matter(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapatterns.cache_aside.driver.random.random", lambda: 1 - 1e-9)

    def slow(conn: Connection) -> str | None:
        conn.execute(text("SELECT pg_sleep(0.005)"))  # the work
        return name(conn)

    cache.get_or_load(1, slow)
    cache.get_or_load(1, slow)
    assert cache.stats().loads == 1

    cache.get_or_load(1, slow, early_refresh=100_000)
    assert cache.stats().loads == 2


def test_stamps_outlive_a_value_that_lives_longer_than_others(
    cache: Cache, redis_client: Redis
) -> None:
    cache.get_or_load(1, name, tags=["shop"], ttl_seconds=100_000)
    cache.get_or_load(2, lambda _: None, tags=["bank"], negative_seconds=100_000)

    stamps = redis_client.keys("*:stamp:*")
    assert len(stamps) == 2
    assert all(redis_client.ttl(key) > 200_000 for key in stamps)


@pytest.mark.usefixtures("products")
def test_a_value_leaves_the_process_when_its_own_time_is_up(
    engine: Engine, redis_client: Redis
) -> None:
    with open_cache(redis_client, engine, replace(LOCAL, jitter=0, early_refresh=0)) as near:
        until_told(near)
        long, short = (
            lambda: near.get_or_load("long", name, ttl_seconds=900),
            lambda: near.get_or_load("short", name, ttl_seconds=60, early_refresh=0.5),
        )
        until_kept(near, long)
        until_kept(near, short)

        ends = {
            entry: slot.until - monotonic()
            for entry, slot in tier_of(near)._slots.items()  # noqa: SLF001 -- shows nowhere else
        }
        assert 800 < ends["product:slong"] < 901
        assert ends["product:sshort"] < 61


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ttl_seconds": 0}, "ttl_seconds.*too small"),
        ({"ttl_seconds": float("nan")}, "ttl_seconds.*too small"),
        ({"stale_seconds": -1}, "stale_seconds.*too small"),
        ({"negative_seconds": float("inf")}, "negative_seconds.*too large"),
        ({"redis_timeout_seconds": 1}, "redis_timeout_seconds.*CachePolicy"),
        ({"ttl": 1}, "ttl.*no option"),
    ],
)
def test_options_that_make_no_sense_are_refused_where_they_are_written(
    cache: Cache, options: ValueOptions, why: str
) -> None:
    refused: list[Callable[[], object]] = [
        lambda: cache.cached(**options),
        lambda: cache.get_or_load(1, name, **options),
        lambda: cache.get_many([], lambda _, keys: dict.fromkeys(keys, 1), **options),
    ]
    for call in refused:
        with pytest.raises(SettingsError, match=why):
            call()


@pytest.mark.usefixtures("products")
def test_the_cache_for_asyncio_knows_the_same_layers(
    engine: Engine, redis_url: str, redis_client: Redis
) -> None:
    async def load(conn: AsyncConnection, number: int) -> str | None:
        return await conn.run_sync(name_of, number)

    async def scenario() -> None:
        async_engine = create_async_engine(engine.url)
        own = AsyncCache(redis_url, async_engine, name="product", policy=STEADY)
        product = own.cached(ttl_seconds=600)(load)
        await product(1)
        assert await product.get_many([2]) == {2: "first"}
        await own.get_or_load("own", lambda conn: load(conn, 1), ttl_seconds=900)

        async def load_many(_: AsyncConnection, keys: list[str]) -> dict[str, str]:
            return dict.fromkeys(keys, "there")

        await own.get_many(["many"], load_many, ttl_seconds=120)
        with pytest.raises(SettingsError, match="ttl_seconds"):
            await own.get_or_load("own", lambda conn: load(conn, 1), ttl_seconds=-1)
        await own.close()
        await async_engine.dispose()

    asyncio.run(scenario())

    assert lives(redis_client) == [120, 600, 600, 900]


def test_options_are_looked_up_and_calls_without_them_make_nothing() -> None:
    policy = CachePolicy()

    assert policies.layered(policy, {}) is policy
    again = [policies.layered(policy, {"ttl_seconds": 7}) for _ in range(2)]
    assert again[0] is again[1] == replace(policy, ttl_seconds=7)
