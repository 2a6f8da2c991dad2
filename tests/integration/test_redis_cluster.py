"""A read model in a Redis cluster: all of it in one slot, wherever that is."""

import asyncio
from collections.abc import Iterator
from itertools import count

import pytest
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster
from sqlalchemy import Engine

from datapatterns.cqrs import Projections, RedisChanges, RedisProjection, on
from datapatterns.cqrs.in_redis.redis_keys import RedisKeys
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.in_redis.redis_retiring import remove_from_redis
from datapatterns.cqrs.schema import projection_tables
from datapatterns.embedded import ValkeyServer
from datapatterns.errors import EvictionPolicyError, ServerUnavailableError
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.testing.faults import armed
from tests.fixtures.read_models import Dashboard, ItemScanned, append_all
from tests.fixtures.redis_clusters import (
    Cluster,
    address_of,
    node_client,
    open_to_all,
)

STORE = EventStore()
TABLES = projection_tables(STORE.schema)
KEYS = RedisKeys("datapatterns", "dashboard", 1)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


class Baskets(RedisProjection, version=1):
    @on(ItemScanned)
    def _(self, changes: RedisChanges, e: ItemScanned, meta: RecordedEvent) -> None:
        changes.update_json(
            "baskets", meta.stream.key, lambda cents, more: [*(cents or []), more], e.cents
        )
        changes.add_score("by_size", meta.stream.key)


@pytest.fixture
def projections(cluster_client: RedisCluster) -> Projections:
    return Projections(STORE, redis=cluster_client)


def milk(number: int) -> list[object]:
    return [ItemScanned("milk", 100)] * number


def test_a_read_model_is_built_read_rebuilt_and_removed(
    engine: Engine, projections: Projections, cluster: Cluster, cluster_client: RedisCluster
) -> None:
    append_all(engine, STORE, milk(7))
    cluster_client.set("somebody:else", "stays")

    projections.catch_up(engine, Dashboard, page_events=2)
    projections.catch_up(engine, Baskets)

    view = projections.view(Dashboard)
    assert view.top("best_sellers") == [("milk", 7)]
    assert view.fields("cents_by_product", ["milk"]) == {"milk": "700"}
    assert projections.view(Baskets).document("baskets", "1") == [100] * 7
    assert projections.verify(engine, Dashboard).matches
    assert projections.verify(engine, Baskets).matches
    with node_client(cluster.owner_of(KEYS.checkpoint)) as owner:
        assert sum(key.startswith(KEYS.tag.encode()) for key in owner.scan_iter()) == 5

    projections.rebuild(engine, Dashboard)
    assert projections.view(Dashboard).top("best_sellers") == [("milk", 7)]
    with engine.begin() as conn:
        conn.execute(TABLES.projections.update().values(status="retired"))
    with engine.connect() as conn:
        remove_from_redis(conn, TABLES, RedisReadModel(cluster_client, KEYS))
    left = {key for key in cluster_client.scan_iter() if key.startswith(KEYS.tag.encode())}
    assert left == {KEYS.checkpoint.encode()}
    assert cluster_client.get("somebody:else") == b"stays"


def test_it_is_read_from_asyncio(
    engine: Engine, projections: Projections, cluster: Cluster
) -> None:
    token = append_all(engine, STORE, milk(3))
    projections.catch_up(engine, Baskets)

    async def read() -> tuple[int, object, object]:
        async with AsyncRedisCluster.from_url(address_of(cluster.nodes[-1])) as client:
            view = projections.async_view(client, Baskets)
            return (
                await view.position(),
                await view.document("baskets", "1", list[int]),
                await view.ranked("by_size"),
            )

    assert asyncio.run(read()) == (token, [100] * 3, [("1", 3)])


def test_leftovers_are_cleared_where_the_slot_is(
    engine: Engine, projections: Projections, cluster_client: RedisCluster
) -> None:
    neighbours = [f"{{other{n}}}:zset:best_sellers" for n in range(20)]
    for key in (KEYS.of("zset", "best_sellers"), KEYS.of("zset", "ghosts"), *neighbours):
        cluster_client.zadd(key, {"ghost": 1})
    append_all(engine, STORE, milk(1))

    projections.catch_up(engine, Dashboard)

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 1)]
    assert projections.verify(engine, Dashboard).matches
    assert all(cluster_client.exists(key) for key in neighbours)


@pytest.mark.parametrize("cluster", [3], indirect=True, ids=["three nodes"])
def test_a_slot_that_moves_takes_the_read_model_along(
    engine: Engine, projections: Projections, cluster: Cluster
) -> None:
    append_all(engine, STORE, milk(6))
    projections.run(engine, Dashboard, page_events=2)
    source = cluster.owner_of(KEYS.checkpoint)
    target = next(node for node in cluster.nodes if node is not source)

    with armed("redis-projection.page-read", lambda: cluster.move_slot_of(KEYS.checkpoint, target)):
        projections.catch_up(engine, Dashboard, page_events=2)

    assert cluster.owner_of(KEYS.checkpoint) is target
    assert projections.view(Dashboard).top("best_sellers") == [("milk", 6)]
    assert projections.verify(engine, Dashboard).matches


def set_policies(cluster: Cluster, owner: ValkeyServer, own: str, others: str) -> None:
    for node in cluster.nodes:
        with node_client(node) as client:
            client.config_set("maxmemory-policy", own if node is owner else others)
            client.config_set("maxmemory", "64mb")


@pytest.fixture
def prefixes(cluster: Cluster) -> Iterator[dict[ValkeyServer, str]]:
    """For each node a prefix whose read model lies there."""
    found: dict[ValkeyServer, str] = {}
    for number in count():
        prefix = f"shop{number}"
        found.setdefault(cluster.owner_of(RedisKeys(prefix, "dashboard", 1).checkpoint), prefix)
        if len(found) == len(cluster.nodes):
            break
    yield found
    set_policies(cluster, cluster.nodes[0], "noeviction", "noeviction")


def test_the_node_that_has_it_must_not_evict(
    engine: Engine,
    cluster: Cluster,
    cluster_client: RedisCluster,
    prefixes: dict[ValkeyServer, str],
) -> None:
    append_all(engine, STORE, milk(1))
    for owner, prefix in prefixes.items():
        projections = Projections(STORE, redis=cluster_client, redis_prefix=prefix)
        set_policies(cluster, owner, "noeviction", "allkeys-lru")
        projections.run(engine, Dashboard)
        set_policies(cluster, owner, "allkeys-lru", "noeviction")

        with pytest.raises(EvictionPolicyError):
            projections.run(engine, Dashboard)


def test_a_node_that_dies_and_comes_back_empty_is_filled_again(
    engine: Engine, projections: Projections, cluster: Cluster
) -> None:
    append_all(engine, STORE, milk(4))
    projections.run(engine, Dashboard, page_events=2)
    owner = cluster.owner_of(KEYS.checkpoint)
    with armed("redis-projection.page-read", owner.kill), pytest.raises(ServerUnavailableError):
        projections.run(engine, Dashboard, page_events=2)
    with pytest.raises(ServerUnavailableError):
        projections.view(Dashboard).position()
    owner.start()
    open_to_all(owner)
    cluster.wait_until_whole()

    projections.catch_up(engine, Dashboard)

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 4)]
    assert projections.verify(engine, Dashboard).matches
