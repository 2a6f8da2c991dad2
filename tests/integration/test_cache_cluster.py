"""A cache in a Redis cluster: its entries lie on all nodes, and hits come from all or from none."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns.cache_aside import AsyncCache, Cache, CachePolicy, gate
from datapatterns.cache_aside.slots import slot_of
from datapatterns.embedded import ValkeyServer
from datapatterns.errors import SettingsError
from datapatterns.failpoints import armed
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
from tests.fixtures.least_rights import acl_rule
from tests.fixtures.redis_clusters import (
    Cluster,
    address_of,
    cluster_of,
    node_client,
    open_to_all,
    url_of,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

COUNT = 60


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    with cluster_of(3) as cluster:
        yield cluster


@pytest.fixture
def cluster(three_nodes: Cluster) -> Cluster:
    for node in three_nodes.nodes:
        with node_client(node) as client:
            client.flushall()
    return three_nodes


@pytest.fixture
def cache(cluster: Cluster, engine: Engine) -> Iterator[Cache]:
    create_products(engine, COUNT)
    with open_cache(url_of(cluster), engine) as cache:
        yield cache


def read(cache: Cache, number: int = 1, tags: Iterable[str] = ()) -> str | None:
    return cache.get_or_load(number, lambda conn: name_of(conn, number), tags=tags)


def write(cache: Cache, number: int, name: str) -> None:
    with cache.writes() as conn:
        rename(conn, number, name)
        cache.invalidate_in(conn, number)


def keys_at(node: ValkeyServer) -> list[bytes]:
    with node_client(node) as client:
        return [*client.scan_iter()]


def entries_at(node: ValkeyServer) -> list[bytes]:
    return [key for key in keys_at(node) if b":value:" in key]


def value_key(cluster: Cluster, number: int) -> bytes:
    [key] = [
        key
        for node in cluster.nodes
        for key in entries_at(node)
        if key.endswith(b"{product:i%d}" % number)
    ]
    return key


def test_entries_lie_on_all_nodes_and_are_forgotten_one_by_one(
    cache: Cache, cluster: Cluster, engine: Engine
) -> None:
    product = cache.cached(load_product)

    first = [product(number) for number in range(1, COUNT + 1)]
    again = [product(number) for number in range(1, COUNT + 1)]
    write(cache, 7, "second")

    assert first == again == [Product(number, "first") for number in range(1, COUNT + 1)]
    assert product(7) == Product(7, "second")
    assert (cache.stats().hits, cache.stats().loads) == (COUNT, COUNT + 1)
    assert all(map(entries_at, cluster.nodes))
    cache.relay()  # else another's first round would forget again what was written
    product(7)
    with cluster.client() as client, open_cache(client, engine) as by_client:
        product = by_client.cached(load_product)
        assert product(7) == Product(7, "second")
        assert product(8) == Product(8, "first")
        assert by_client.stats().loads == 0


def test_what_depends_on_a_tag_is_forgotten_with_it(cache: Cache) -> None:
    for number in range(1, COUNT + 1):
        read(cache, number, ["shelf", f"row {number}"])
        assert read(cache, number, ["shelf", f"row {number}"]) == "first"
    assert cache.stats().hits == COUNT

    with cache.writes() as conn:
        conn.execute(text("UPDATE product SET name = 'second'"))
        cache.invalidate_in(conn, tags=["row 5"])
    names = [read(cache, number, ["shelf", f"row {number}"]) for number in range(1, COUNT + 1)]
    assert [number for number, name in enumerate(names, 1) if name == "second"] == [5]

    cache.invalidate(tags=["shelf"])
    assert {read(cache, n, ["shelf", f"row {n}"]) for n in range(1, COUNT + 1)} == {"second"}


def test_many_are_read_and_loaded_together(cache: Cache) -> None:
    asked: list[list[int]] = []

    def load(conn: Connection, numbers: list[int]) -> dict[int, str]:
        asked.append(numbers)
        rows = conn.execute(
            text("SELECT id, name FROM product WHERE id = ANY (:ids)"), {"ids": numbers}
        )
        return {row.id: row.name for row in rows}

    def tags(number: int) -> list[str]:
        return [f"row {number}"]

    numbers = range(1, 601)
    first = cache.get_many(numbers, load, tags=tags)
    assert cache.get_many(numbers, load, tags=tags) == first
    assert [len(each) for each in asked] == [500, 100]
    assert [number for number, name in first.items() if name == "first"] == [*range(1, COUNT + 1)]

    with cache.writes() as conn:
        rename(conn, 9, "second")
        cache.invalidate_in(conn, 8, tags=["row 9"])
    assert cache.get_many(numbers, load, tags=tags) == {**first, 9: "second"}
    assert asked[2:] == [[8, 9]]


def test_the_relay_reaches_all_nodes(cache: Cache, engine: Engine) -> None:
    assert {read(cache, number) for number in range(1, COUNT + 1)} == {"first"}

    with engine.begin() as conn:
        conn.execute(text("UPDATE product SET name = 'second'"))
        cache.invalidate_in(conn, *range(1, COUNT + 1))
    report = cache.relay()

    assert (report.transactions, report.has_new_generation) == (1, False)
    assert {read(cache, number) for number in range(1, COUNT + 1)} == {"second"}


def test_an_audit_looks_at_all_nodes(cache: Cache, engine: Engine) -> None:
    product = cache.cached(load_product)
    for number in range(1, COUNT + 1):
        product(number)
    assert product.audit().checked == COUNT

    with engine.begin() as conn:  # nobody names it
        rename(conn, 5, "second")
    audit = product.audit(repair=True)

    assert [each.key for each in audit.violations] == [5]
    assert product(5) == Product(5, "second")


def test_a_strict_writer_has_its_fences_on_all_nodes(cluster: Cluster, engine: Engine) -> None:
    create_products(engine, COUNT)
    strict = Cache(url_of(cluster), engine, name="product", policy=PATIENT, strict=True)
    many = range(1, COUNT + 1)
    with closing(strict) as cache, open_cache(url_of(cluster), engine) as other:
        assert {read(cache, number, ["shelf"]) for number in many} == {"first"}
        assert {read(other, number, ["shelf"]) for number in many} == {"first"}

        with armed("cache.write-committed", lambda: seen.update(read(other, n) for n in many)):
            seen: set[str | None] = set()
            with cache.writes() as conn:
                conn.execute(text("UPDATE product SET name = 'second'"))
                cache.invalidate_in(conn, *many, tags=["shelf"])

        assert seen == {"second"}
        assert {read(other, number, ["shelf"]) for number in many} == {"second"}
        assert not [key for node in cluster.nodes for key in keys_at(node) if b":fences:" in key]


def test_no_hit_comes_from_a_cluster_one_node_of_which_nobody_vouches_for(
    cache: Cache, cluster: Cluster, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "CHECK_SECONDS", 0.0)  # it looks at the marks each time
    read(cache)
    with engine.begin() as conn, node_client(cluster.nodes[2]) as client:
        # No relay can run a round that would mend it.
        conn.execute(text("SELECT FROM datapatterns.cache_target FOR UPDATE"))
        assert has_hit(cache, 1)

        [mark] = [key for key in client.scan_iter() if b":server:" in key]
        client.delete(mark)

        assert not has_hit(cache, 1)
        assert cache.stats().bypassed == 1


def test_a_node_that_restarts_empty_costs_loads_and_nothing_else(
    cache: Cache, cluster: Cluster
) -> None:
    for number in range(1, COUNT + 1):
        read(cache, number)
    node = cluster.nodes[1]
    node.kill()
    assert {read(cache, number) for number in range(1, COUNT + 1)} == {"first"}
    write(cache, 7, "second")
    assert read(cache, 7) == "second"

    node.start()
    open_to_all(node)
    cluster.wait_until_whole()

    until(lambda: has_hit(cache, 7))
    assert read(cache, 7) == "second"


def has_hit(cache: Cache, number: int) -> bool:
    hits = cache.stats().hits
    read(cache, number)
    return cache.stats().hits > hits


def test_what_an_old_dump_of_a_node_brings_back_is_not_served(
    cache: Cache, cluster: Cluster, engine: Engine
) -> None:
    for number in range(1, COUNT + 1):
        read(cache, number)
    node = cluster.owner_of(value_key(cluster, 7).decode())
    with node_client(node) as client:
        client.save()
    write(cache, 7, "second")
    assert cache.relay().transactions == 1  # so no later round will send it again
    node.kill()
    node.start()
    open_to_all(node)
    cluster.wait_until_whole()
    assert value_key(cluster, 7)

    assert read(cache, 7) == "second"
    with open_cache(url_of(cluster), engine) as another:
        assert read(another, 7) == "second"
    until(lambda: has_hit(cache, 7))
    assert read(cache, 7) == "second"


class Moving:
    """A slot on its way from one node to another, step by step."""

    def __init__(self, cluster: Cluster, there: Redis, here: Redis, slot: int) -> None:
        self._cluster = cluster
        self._there = there
        self._here = here
        self._slot = slot
        self._theirs, self._ours = (
            each.execute_command("CLUSTER MYID")  # type: ignore[no-untyped-call] # redis-py's
            for each in (there, here)
        )

    def begin(self) -> None:
        self._set_slot(self._here, "IMPORTING", self._theirs)
        self._set_slot(self._there, "MIGRATING", self._ours)

    def move(self, *roles: str) -> None:
        """Move the keys that are there, of these roles only if any are named."""
        there: Any = self._there
        keys = there.execute_command("CLUSTER GETKEYSINSLOT", self._slot, 1_000)
        moving = [key for key in keys if not roles or key.split(":")[2] in roles]
        options = self._here.connection_pool.connection_kwargs
        if moving:
            address = options["host"], options["port"]
            there.execute_command("MIGRATE", *address, "", 0, 10_000, "KEYS", *moving)

    def end(self) -> None:
        for client in (self._here, self._there):
            self._set_slot(client, "NODE", self._ours)
        self._cluster.wait_until_whole()

    def _set_slot(self, client: Redis, state: str, node: object) -> None:
        asking: Any = client  # execute_command has no types
        asking.execute_command("CLUSTER SETSLOT", self._slot, state, node)


@contextmanager
def moving_slot_of(cluster: Cluster, number: int) -> Iterator[Moving]:
    """Move the slot of an entry in steps; in the end it has moved."""
    key = value_key(cluster, number).decode()
    source = cluster.owner_of(key)
    target = next(node for node in cluster.nodes if node is not source)
    with node_client(source) as there, node_client(target) as here:
        moving = Moving(cluster, there, here, slot_of(key))
        try:
            yield moving
        finally:
            moving.move()
            moving.end()


def test_a_slot_that_moves_takes_its_entries_along_and_forgets_on_the_way(
    cache: Cache, cluster: Cluster
) -> None:
    read(cache)
    with moving_slot_of(cluster, 1) as moving:
        steps: list[Callable[[], None]] = [
            lambda: None,
            moving.begin,
            lambda: moving.move("value"),
            moving.move,
            moving.end,
            lambda: None,
        ]
        for number, step in enumerate(steps):
            assert read(cache) == read(cache)
            step()
            write(cache, 1, str(number))
            assert read(cache) == str(number)
            assert cache.stats().undelivered == 0
            assert cache.relay().has_new_generation is False
            assert read(cache) == str(number)
    assert has_hit(cache, 1)


def test_values_that_were_moved_are_forgotten_where_they_are(
    cache: Cache, cluster: Cluster
) -> None:
    """The invalidation finds the value on one node and the trace of its writers on the other."""
    read(cache)
    write(cache, 1, "second")
    read(cache)
    with moving_slot_of(cluster, 1) as moving:
        moving.begin()
        moving.move("value")

        write(cache, 1, "third")

        assert cache.stats().undelivered == 0
    assert not [key for node in cluster.nodes for key in entries_at(node)]
    assert read(cache) == "third"


def test_tasks_do_the_same(cluster: Cluster, engine: Engine) -> None:
    create_products(engine, COUNT)

    async def load(conn: AsyncConnection, number: int) -> str | None:
        return await conn.run_sync(name_of, number)

    async def load_many(conn: AsyncConnection, numbers: list[int]) -> dict[int, str | None]:
        return {number: await load(conn, number) for number in numbers}

    async def scenario() -> None:
        own = create_async_engine(engine.url)
        cache = AsyncCache(url_of(cluster), own, name="product", policy=PATIENT)
        many = range(1, COUNT + 1)

        async def names() -> set[str | None]:
            tags = ["shelf"]
            return {
                await cache.get_or_load(n, lambda conn: load(conn, n), tags=tags)  # noqa: B023
                for n in many
            }

        assert await names() == await names() == {"first"}
        assert cache.stats().hits == COUNT
        async with cache.writes() as conn:
            await conn.execute(text("UPDATE product SET name = 'second'"))
            await conn.run_sync(cache.invalidate_in, 999, tags=["shelf"])
        assert await names() == {"second"}
        found = await cache.get_many(range(1, 301), load_many)
        assert await cache.get_many(range(1, 301), load_many) == found
        assert cache.stats().hits == COUNT + 300

        await cache.close()
        await own.dispose()

    asyncio.run(scenario())


def test_a_slot_that_moves_is_followed_by_tasks(cluster: Cluster, engine: Engine) -> None:
    create_products(engine, 1)

    async def load(conn: AsyncConnection) -> str | None:
        return await conn.run_sync(name_of, 1)

    async def scenario() -> None:
        own = create_async_engine(engine.url)
        cache = AsyncCache(url_of(cluster), own, name="product", policy=PATIENT)
        assert await cache.get_or_load(1, load) == "first"
        with moving_slot_of(cluster, 1) as moving:
            for number, step in enumerate([moving.begin, moving.move, moving.end]):
                step()
                async with cache.writes() as conn:
                    await conn.run_sync(rename, 1, str(number))
                    await conn.run_sync(cache.invalidate_in, 1)
                assert await cache.get_or_load(1, load) == str(number)
        hits = cache.stats().hits
        assert await cache.get_or_load(1, load) == "2"
        assert cache.stats().hits == hits + 1
        await cache.close()
        await own.dispose()

    asyncio.run(scenario())


def test_a_node_of_a_cluster_is_no_server_of_its_own(cluster: Cluster, engine: Engine) -> None:
    with (
        open_cache(address_of(cluster.nodes[0]), engine) as cache,
        pytest.raises(SettingsError, match=r"redis\+cluster://"),
    ):
        cache.relay()


def test_the_rights_of_the_page_and_two_more_are_enough(cluster: Cluster, engine: Engine) -> None:
    create_products(engine, COUNT)
    rule = acl_rule().replace(">PASSWORD", ">secret")
    for node in cluster.nodes:
        with node_client(node) as client:
            acl: Any = client  # execute_command has no types
            acl.execute_command("ACL", "SETUSER", "app", *rule.split(), "+asking", "+cluster|slots")
    url = url_of(cluster).replace("://", "://app:secret@")
    with open_cache(url, engine) as cache, moving_slot_of_one(cluster, cache) as moving:
        moving.begin()
        write(cache, 1, "second")
        assert read(cache, 1) == "second"
        assert {read(cache, number, ["shelf"]) for number in range(2, COUNT + 1)} == {"first"}
        assert {read(cache, number, ["shelf"]) for number in range(2, COUNT + 1)} == {"first"}
        cache.invalidate(tags=["shelf"])
        assert cache.stats().hits == COUNT - 1
        assert cache.stats().undelivered == 0


@contextmanager
def moving_slot_of_one(cluster: Cluster, cache: Cache) -> Iterator[Moving]:
    read(cache)
    with moving_slot_of(cluster, 1) as moving:
        yield moving


def test_what_cannot_be_right_in_a_cluster_is_refused(engine: Engine) -> None:
    url = "redis+cluster://127.0.0.1:1"
    for odd in ({"policy": CachePolicy(local_bytes=1)}, {"load_from": engine}):
        with pytest.raises(SettingsError, match=r"local_bytes|load_from"):
            Cache(url, engine, name="product", **odd)


def test_a_cluster_that_is_away_costs_no_page_and_no_write(engine: Engine) -> None:
    create_products(engine)
    policy = CachePolicy(redis_timeout_seconds=0.2)
    with open_cache("redis+cluster://127.0.0.1:1,127.0.0.1:2", engine, policy) as cache:
        assert read(cache) == "first"
        write(cache, 1, "second")
        assert read(cache) == "second"
