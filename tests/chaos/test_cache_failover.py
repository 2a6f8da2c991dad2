"""A replica takes over that has not heard of the last invalidations: nothing stale is served."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from redis.sentinel import Sentinel
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns.cache_aside import AsyncCache, Cache, CachePolicy
from datapatterns.embedded import ValkeyServer
from tests.fixtures.caches import (
    ENOUGH_SECONDS,
    create_products,
    name_of,
    open_cache,
    rename,
    until,
)
from tests.fixtures.redis_clusters import (
    Cluster,
    cluster_of,
    cut_off,
    node_client,
    open_to_all,
    url_of,
)
from tests.fixtures.sentinels import SERVICE, Watched, watched

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.chaos]

POLICY = CachePolicy(redis_timeout_seconds=1, vouched_seconds=60)


@pytest.fixture
def servers() -> Iterator[Watched]:
    with watched() as servers:
        yield servers


def read(cache: Cache, number: int = 1) -> str | None:
    return cache.get_or_load(number, lambda conn: name_of(conn, number))


def write(cache: Cache, name: str, number: int = 1) -> None:
    with cache.writes() as conn:
        rename(conn, number, name)
        cache.invalidate_in(conn, number)


def has_hit(cache: Cache, number: int = 1) -> bool:
    hits = cache.stats().hits
    read(cache, number)
    return cache.stats().hits > hits


def has_value(server: ValkeyServer, number: int = 1) -> bool:
    with node_client(server) as client:
        return any(b"value:{product:i%d}" % number in key for key in client.scan_iter())


def test_what_a_promoted_replica_has_kept_is_not_served(servers: Watched, engine: Engine) -> None:
    create_products(engine)
    with ExitStack() as stack:
        by_url = stack.enter_context(open_cache(servers.url, engine, POLICY))
        client = Sentinel([servers.sentinel]).master_for(SERVICE)  # type: ignore[no-untyped-call]
        by_client = stack.enter_context(open_cache(client, engine, POLICY))
        caches = [by_url, by_client]
        assert [read(cache) for cache in caches] == ["first"] * 2
        assert all(map(has_hit, caches))

        cut_off(servers.replica, servers.primary)
        write(by_url, "second")
        assert by_url.relay().transactions == 1  # so no later round will send it again
        assert [read(cache) for cache in caches] == ["second"] * 2
        servers.primary.kill()
        servers.wait_until_the_replica_leads()
        assert has_value(servers.replica)

        assert [read(cache) for cache in caches] == ["second"] * 2
        for cache in caches:
            until(lambda: has_hit(cache))  # noqa: B023 -- done within this turn
            assert read(cache) == "second"
        write(by_client, "third")
        assert [read(cache) for cache in caches] == ["third"] * 2


def test_tasks_find_whom_the_sentinel_names(servers: Watched, engine: Engine) -> None:
    create_products(engine)

    async def load(conn: AsyncConnection) -> str | None:
        return await conn.run_sync(name_of, 1)

    async def scenario() -> None:
        own = create_async_engine(engine.url)
        cache = AsyncCache(servers.url, own, name="product", policy=POLICY)

        async def read_it() -> str | None:
            return await cache.get_or_load(1, load)

        assert [await read_it(), await read_it()] == ["first", "first"]
        assert cache.stats().hits == 1
        cut_off(servers.replica, servers.primary)
        async with cache.writes() as conn:
            await conn.run_sync(rename, 1, "second")
            await conn.run_sync(cache.invalidate_in, 1)
        assert (await cache.relay()).transactions == 1
        servers.primary.kill()
        servers.wait_until_the_replica_leads()
        assert has_value(servers.replica)

        async with asyncio.timeout(ENOUGH_SECONDS):
            while cache.stats().hits == 1:
                assert await read_it() == "second"
        await cache.close()
        await own.dispose()

    asyncio.run(scenario())


def test_a_node_that_takes_over_in_a_cluster_does_not_serve_what_it_has_kept(
    engine: Engine,
) -> None:
    create_products(engine)
    with cluster_of(3, replicas=1) as cluster, open_cache(url_of(cluster), engine, POLICY) as cache:
        node, *others = cluster.nodes
        [replica] = cluster.replicas
        number = next(n for n in range(1, 20) if read(cache, n) and has_value(node, n))
        assert has_hit(cache, number)

        cut_off(replica, node)
        write(cache, "second", number)
        assert cache.relay().transactions == 1
        assert read(cache, number) == "second"
        node.kill()
        with node_client(replica) as client:
            client.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
        after = Cluster([*others, replica])
        after.wait_until_whole()
        assert has_value(replica, number)

        assert read(cache, number) == "second"
        with open_cache(url_of(after), engine, POLICY) as another:
            assert read(another, number) == "second"
        until(lambda: has_hit(cache, number))
        assert read(cache, number) == "second"

        # Who has led comes back and follows, and no hit comes from there.
        node.start()
        open_to_all(node)
        write(cache, "third", number)
        assert read(cache, number) == "third"
        until(lambda: has_hit(cache, number))
        assert read(cache, number) == "third"
