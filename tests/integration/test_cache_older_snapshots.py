"""Reading through a cache in a transaction that sees one moment only."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from psycopg import OperationalError
from redis import Redis
from redis.exceptions import ResponseError
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns.cache_aside import AsyncCache, Cache, CachedFunction, CacheStats
from datapatterns.cache_aside.lua_scripts import KEEP_MILESTONES, SURVEY, Command
from datapatterns.cache_aside.redis_commands import milestone_at, survey_in, survey_of
from datapatterns.change_log.snapshots import Snapshot
from datapatterns.embedded import ValkeyServer
from tests.fixtures.caches import (
    PATIENT,
    Product,
    create_products,
    load_product,
    name_of,
    open_cache,
    rename,
    until,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

Read = CachedFunction[[int], Product | None]


@pytest.fixture
def cache(engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(redis_client, engine) as cache:
        cache.relay()
        yield cache


@pytest.fixture
def product(cache: Cache) -> Read:
    return cache.cached(load_product)


@pytest.fixture(params=["REPEATABLE READ", "SERIALIZABLE"])
def moment(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level=request.param) as conn:
        yield conn


def stored(stats: CacheStats) -> tuple[int, int]:
    return stats.filled, stats.unstored


def write(cache: Cache, name: str = "second") -> None:
    with cache.writes() as conn:
        rename(conn, 1, name)
        cache.invalidate_in(conn, 1)


def test_what_it_loads_is_kept_for_others(cache: Cache, product: Read, moment: Connection) -> None:
    assert product.within(moment, 1) == Product(1, "first")
    assert stored(cache.stats()) == (1, 0)

    assert product(1) == Product(1, "first")
    assert (cache.stats().loads, cache.stats().hits) == (1, 1)


def test_what_may_be_older_than_a_write_is_not(
    cache: Cache, product: Read, moment: Connection
) -> None:
    assert name_of(moment, 2) == "first"
    write(cache)

    assert product.within(moment, 1) == Product(1, "first")
    assert stored(cache.stats()) == (0, 1)
    assert product(1) == Product(1, "second")


def test_what_is_newer_than_a_write_is_kept(
    cache: Cache, product: Read, moment: Connection
) -> None:
    write(cache)

    assert product.within(moment, 1) == Product(1, "second")
    assert stored(cache.stats()) == (1, 0)


def test_what_began_before_anybody_knew_what_redis_had_lost_is_not(
    cache: Cache, product: Read, moment: Connection, redis_client: Redis
) -> None:
    assert name_of(moment, 2) == "first"
    write(cache)
    [milestones] = redis_client.keys("*:milestones")
    redis_client.delete(milestones, *redis_client.keys("*:writers:*"))
    cache.relay()

    assert product.within(moment, 1) == Product(1, "first")
    assert stored(cache.stats()) == (0, 1)


def test_a_hit_is_served_only_if_it_may_be_newer(
    cache: Cache, engine: Engine, redis_client: Redis, moment: Connection
) -> None:
    calls: list[int] = []

    def load(conn: Connection) -> str | None:
        calls.append(1)
        return name_of(conn, 1)

    assert name_of(moment, 2) == "first"
    write(cache)
    assert cache.get_or_load(1, load) == "second"

    assert cache.get_or_load(1, load, within=moment) == "first"
    assert cache.get_or_load(1, load, within=moment, allow_nonrepeatable=True) == "second"
    assert len(calls) == 2
    with open_cache(redis_client, engine, name="lenient") as lenient:
        read = lenient.cached(allow_nonrepeatable=True)(load_product)
        assert [read.within(moment, 1), read.within(moment, 1)] == [Product(1, "first")] * 2
        assert stored(lenient.stats()) == (1, 0)  # nobody has forgotten an entry of this cache
        assert lenient.stats().hits == 1


def test_an_older_snapshot_is_not_kept_under_a_tag(cache: Cache, moment: Connection) -> None:
    def read(within: Connection | None = None) -> str | None:
        return cache.get_or_load(
            "list", lambda conn: name_of(conn, 1), tags=["shelf"], within=within
        )

    assert name_of(moment, 2) == "first"
    with cache.writes() as conn:
        rename(conn, 1, "second")
        cache.invalidate_in(conn, tags=["shelf"])

    assert read(moment) == "first"
    assert stored(cache.stats()) == (0, 1)
    assert read() == "second"


def ways_to_write_unnoticed() -> dict[str, Callable[[Connection], object]]:
    def in_a_savepoint(conn: Connection) -> None:
        with conn.begin_nested() as savepoint:
            rename(conn, 1, "never was")
            savepoint.rollback()

    return {
        "a statement": lambda conn: rename(conn, 1, "never was"),
        "a savepoint": in_a_savepoint,
        "a lock": lambda conn: conn.execute(text("SELECT FROM product FOR UPDATE")),
    }


@pytest.mark.parametrize("way", ways_to_write_unnoticed().values(), ids=ways_to_write_unnoticed())
def test_what_it_may_have_written_itself_is_not_kept(
    way: Callable[[Connection], object], cache: Cache, product: Read, moment: Connection
) -> None:
    way(moment)
    product.within(moment, 1)
    moment.rollback()

    assert stored(cache.stats()) == (0, 1)
    assert product(1) == Product(1, "first")


def test_a_loader_may_write_too(cache: Cache, moment: Connection) -> None:
    def load(conn: Connection) -> str | None:
        rename(conn, 1, "never was")
        return name_of(conn, 1)

    assert cache.get_or_load(1, load, within=moment) == "never was"
    moment.rollback()

    assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "first"


def test_a_level_that_sql_text_has_lowered_keeps_nothing(
    cache: Cache, product: Read, moment: Connection
) -> None:
    moment.execute(text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED"))

    assert product.within(moment, 1) == Product(1, "first")
    assert stored(cache.stats()) == (0, 1)


def test_a_loader_that_has_swallowed_an_error_keeps_nothing(
    cache: Cache, moment: Connection
) -> None:
    def load(conn: Connection) -> str:
        with pytest.raises(DBAPIError):
            conn.execute(text("SELECT 1 / 0"))
        return "made up"

    assert cache.get_or_load(1, load, within=moment) == "made up"
    assert stored(cache.stats()) == (0, 1)


def test_a_loader_that_fails_lets_others_load(
    cache: Cache, product: Read, moment: Connection
) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.get_or_load(1, lambda _: 1 // 0, within=moment)

    assert product(1) == Product(1, "first")
    assert cache.stats().waits == 0


def test_nobody_is_waited_for_in_an_open_transaction(cache: Cache, moment: Connection) -> None:
    def load_beside(conn: Connection) -> str | None:
        # While somebody holds the lease.
        within = cache.get_or_load(1, lambda own: name_of(own, 1), within=moment)
        return within if within == name_of(conn, 1) else None

    assert cache.get_or_load(1, load_beside) == "first"
    assert (cache.stats().waits, cache.stats().loads) == (0, 2)


def test_another_database_fills_nothing(cache: Cache, shard_urls: list[URL], product: Read) -> None:
    other = create_engine(shard_urls[0], isolation_level="REPEATABLE READ")
    create_products(other)
    with other.connect() as conn:
        rename_all = text("SELECT 'elsewhere'")
        assert cache.get_or_load(1, lambda own: own.scalar(rename_all), within=conn) == "elsewhere"
    other.dispose()

    assert stored(cache.stats()) == (0, 1)
    assert product(1) == Product(1, "first")


ELSEWHERE = [
    "CREATE SCHEMA elsewhere",
    "CREATE TABLE elsewhere.product (id int PRIMARY KEY, name text)",
    "INSERT INTO elsewhere.product VALUES (1, 'elsewhere')",
]
OUTLOOKS = {
    "another schema": "SET LOCAL search_path = elsewhere",
    "a temporary table": "CREATE TEMPORARY TABLE product AS SELECT 1 AS id, 'temporary' AS name",
    "another role": "SET LOCAL ROLE pg_read_all_data",
    "another time zone": "SET LOCAL TIME ZONE 'Asia/Tokyo'",
}


@pytest.mark.parametrize("outlook", OUTLOOKS.values(), ids=OUTLOOKS)
def test_what_its_session_alone_reads_is_not_kept(
    outlook: str, cache: Cache, engine: Engine, product: Read, moment: Connection
) -> None:
    with engine.begin() as conn:
        for statement in ELSEWHERE:
            conn.execute(text(statement))
    moment.execute(text(outlook))
    if "TEMPORARY" in outlook:
        moment.commit()  # from then on it writes nothing

    product.within(moment, 1)
    assert stored(cache.stats()) == (0, 1)
    assert product(1) == Product(1, "first")


def test_another_pool_is_looked_at_once(cache: Cache, engine: Engine, product: Read) -> None:
    alike = create_engine(engine.url, isolation_level="REPEATABLE READ")
    unlike = create_engine(
        engine.url,
        isolation_level="REPEATABLE READ",
        connect_args={"options": "-c search_path=pg_catalog,public"},
    )
    for other in (unlike, alike):
        with other.connect() as conn:
            product.within(conn, 1)
        other.dispose()

    assert stored(cache.stats()) == (1, 1)


def test_who_cannot_be_told_from_others_has_its_answer_all_the_same(
    cache: Cache, engine: Engine, product: Read, moment: Connection
) -> None:
    def refuse(*_: object) -> None:
        raise OperationalError("too many clients already")

    event.listen(engine, "do_connect", refuse)
    try:
        assert product.within(moment, 1) == Product(1, "first")
    finally:
        event.remove(engine, "do_connect", refuse)
    assert stored(cache.stats()) == (0, 1)

    assert product.within(moment, 1) == Product(1, "first")
    assert stored(cache.stats()) == (1, 1)


def test_whoever_holds_the_last_connection_keeps_it_for_others(
    engine: Engine, redis_client: Redis
) -> None:
    create_products(engine)
    narrow = create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=1)
    with open_cache(redis_client, narrow) as cache:
        cache.relay()
        with narrow.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
            assert cache.get_or_load(1, lambda own: name_of(own, 1), within=conn) == "first"
        assert stored(cache.stats()) == (1, 0)
    narrow.dispose()


def said_by(client: Any, command: Command) -> Any:  # noqa: ANN401 -- redis-py has no types here
    return client.execute_command(*command)


def test_milestones_do_not_come_back_after_a_flush(redis_client: Redis) -> None:
    survey = survey_in(said_by(redis_client, survey_of("p:", begins=True)))
    keep = milestone_at("p:", survey, Snapshot.parse("10:10:"))
    redis_client.script_load(KEEP_MILESTONES.source)
    assert said_by(redis_client, keep) == 1

    redis_client.flushdb()
    assert said_by(redis_client, keep) == 0
    said_by(redis_client, survey_of("p:", begins=True))
    assert said_by(redis_client, keep) == 0


def test_an_eviction_is_noticed(valkey_server: ValkeyServer) -> None:
    def losses() -> str:
        return survey_in(said_by(client, survey_of("p:", begins=True))).losses

    with closing(Redis.from_url(valkey_server.url)) as client:
        client.script_load(SURVEY.source)
        before = losses()
        client.persist("p:milestones")
        client.set("writers", "x", ex=60)
        client.config_set("maxmemory-policy", "volatile-random")
        client.config_set("maxmemory", 1)
        until(lambda: not is_there(client, "writers"))
        client.config_set("maxmemory", 0)

        assert before.split(":")[::3] == losses().split(":")[::3]  # run and milestones
        assert before != losses()


def is_there(client: Redis, key: str) -> bool:
    with suppress(ResponseError):
        client.set("pressure", "x")
    return bool(client.exists(key))


@pytest.mark.usefixtures("redis_client")  # an empty one
def test_tasks_in_one_moment(engine: Engine, redis_url: str) -> None:
    create_products(engine)

    async def run() -> None:
        own = create_async_engine(engine.url)
        cache = AsyncCache(redis_url, own, name="product", policy=PATIENT)

        @cache.cached(allow_nonrepeatable=True)
        async def name(conn: AsyncConnection, product_id: int) -> str | None:
            return await conn.run_sync(name_of, product_id)

        try:
            await cache.relay()
            async with own.connect() as conn:
                _ = await conn.execution_options(isolation_level="REPEATABLE READ")
                assert [await name.within(conn, 1), await name(1)] == ["first", "first"]
                async with cache.writes() as writer:
                    await writer.run_sync(rename, 1, "second")
                    await writer.run_sync(name.invalidate_in, 1)
                assert await name.within(conn, 1) == "first"
                assert stored(cache.stats()) == (1, 1)
                assert [await name(1), await name.within(conn, 1)] == ["second", "second"]
        finally:
            await cache.close()
            await own.dispose()

    asyncio.run(run())
