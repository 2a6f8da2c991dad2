"""Several entries at once, and entries loaded anew."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from threading import Thread

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns.cache_aside import AsyncCache, Cache
from datapatterns.errors import CacheKeyError, SettingsError
from tests.fixtures.caches import (
    PATIENT,
    Gate,
    Product,
    create_products,
    load_product,
    name_of,
    open_cache,
    rename,
    until,
)

NAMES = text("SELECT id, name FROM product WHERE id = ANY (:ids)")
pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def cache(engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(redis_client, engine) as cache:
        yield cache


class Names:
    """Loads names, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, conn: Connection, ids: list[int]) -> dict[int, str]:
        self.asked.append(ids)
        found = conn.execute(NAMES, {"ids": ids})
        return {row.id: row.name for row in found}


def commands_sent(redis: Redis) -> int:
    return int(redis.info("stats")["total_commands_processed"])


def test_what_is_missing_is_loaded_together(cache: Cache) -> None:
    names = Names()
    cache.get_or_load(2, lambda conn: name_of(conn, 2))

    assert cache.get_many([1, 2, 3, 2], names) == {1: "first", 2: "first", 3: "first"}
    assert names.asked == [[1, 3]]
    assert cache.get_many([3, 1], names) == {3: "first", 1: "first"}
    assert names.asked == [[1, 3]]


@pytest.mark.parametrize("keys", [[1, True], [False, 0], [(1, "a"), (True, "a")]], ids=repr)
def test_keys_that_a_dict_takes_for_one_are_refused(cache: Cache, keys: list[int]) -> None:
    with pytest.raises(CacheKeyError, match="ask for each by itself"):
        cache.get_many(keys, lambda _, ids: {key: repr(key) for key in ids})


def test_what_is_there_takes_one_round_trip(cache: Cache, redis_client: Redis) -> None:
    names = Names()
    cache.get_many(range(1, 11), names)
    before = commands_sent(redis_client)

    assert len(cache.get_many(range(1, 11), names)) == 10

    # The two INFO themselves, of which the second counts.
    assert commands_sent(redis_client) - before == 2


def test_absence_is_remembered_for_keys_that_the_loader_leaves_out(cache: Cache) -> None:
    names = Names()

    assert cache.get_many([1, 999], names) == {1: "first", 999: None}
    assert cache.get_many([999, 1], names) == {999: None, 1: "first"}
    assert names.asked == [[1, 999]]


def test_no_keys_ask_nobody(cache: Cache) -> None:
    names = Names()

    assert cache.get_many([], names) == {}
    assert names.asked == []


def test_a_thousand_and_one_keys_are_loaded_in_portions(cache: Cache) -> None:
    names = Names()

    assert len(cache.get_many(range(1, 1_002), names)) == 1_001
    assert [len(ids) for ids in names.asked] == [500, 500, 1]


def test_keys_that_were_not_asked_for_are_refused(cache: Cache) -> None:
    def by_text(_: Connection, ids: list[int]) -> dict[int, str]:
        return {str(own): "first" for own in ids}  # type: ignore[misc]  # the mistake

    with pytest.raises(SettingsError, match="a key of type str that was not asked for"):
        cache.get_many([1, 2], by_text)
    assert cache.get_many([1], Names()) == {1: "first"}  # nobody waits for a lease


def test_a_loader_that_returns_a_list_is_refused(cache: Cache) -> None:
    with pytest.raises(SettingsError, match="return a dict by key"):
        cache.get_many([1], lambda _, ids: ids)  # type: ignore[arg-type, return-value]  # the mistake


def test_one_entry_that_was_forgotten_meanwhile_does_not_spoil_the_others(cache: Cache) -> None:
    names = Names()

    def forgetting(conn: Connection, ids: list[int]) -> dict[int, str]:
        found = names(conn, ids)
        with cache.writes() as writer:
            rename(writer, 2, "second")
            cache.invalidate_in(writer, 2)
        return found

    assert cache.get_many([1, 2], forgetting) == {1: "first", 2: "first"}
    assert cache.get_many([1, 2], names) == {1: "first", 2: "second"}
    assert names.asked == [[1, 2], [2]]
    assert cache.stats().refused == 1


def test_a_cached_function_gets_many_one_by_one(cache: Cache) -> None:
    product = cache.cached(load_product)

    assert product.get_many([1, 2]) == {1: Product(1, "first"), 2: Product(2, "first")}
    assert product(2) == Product(2, "first")
    assert cache.stats().loads == 2


def test_a_cached_function_gets_many_by_its_own_loader(cache: Cache) -> None:
    names = Names()

    @cache.cached
    def name(_: Connection, product_id: int) -> str | None:  # noqa: ARG001 -- the key
        raise AssertionError("the other loader is asked")

    name.many(names)

    assert name.get_many([1, 2]) == {1: "first", 2: "first"}
    assert name(1) == "first"
    assert names.asked == [[1, 2]]


def test_several_arguments_are_a_tuple(cache: Cache) -> None:
    @cache.cached
    def between(conn: Connection, first: int, last: int = 9) -> int:
        query = text("SELECT count(*) FROM product WHERE id BETWEEN :first AND :last")
        return int(conn.execute(query, {"first": first, "last": last}).scalar_one())

    assert between.get_many([(1, 3), (1, 9)]) == {(1, 3): 3, (1, 9): 9}
    assert between(1) == 9
    assert cache.stats().loads == 2
    with pytest.raises(SettingsError, match="a tuple of 2 arguments"):
        between.get_many([1])


def test_a_function_whose_keys_do_not_tell_its_arguments_gets_no_many(cache: Cache) -> None:
    @cache.cached
    def total(_: Connection, *numbers: int) -> int:
        return sum(numbers)

    assert total(1, 2) == 3
    with pytest.raises(SettingsError, match="parameters without a fixed place"):
        total.get_many([(1, 2)])


def test_refreshing_replaces_what_is_fresh(cache: Cache, engine: Engine) -> None:
    product = cache.cached(load_product)
    assert product(1) == Product(1, "first")
    with engine.begin() as conn:
        rename(conn, 1, "second")  # and nobody is told

    assert product(1) == Product(1, "first")
    assert product.refresh(1) == Product(1, "second")
    assert product(1) == Product(1, "second")


def test_others_are_served_while_one_refreshes(cache: Cache) -> None:
    gate, is_slow = Gate(), False

    @cache.cached
    def product(conn: Connection, product_id: int) -> Product | None:
        if is_slow:
            gate.stop_here()
        return load_product(conn, product_id)

    product(1)
    is_slow = True
    refreshing = Thread(target=product.refresh, args=(1,))
    refreshing.start()
    gate.wait_until_reached()

    assert product(1) == Product(1, "first")
    gate.open()
    refreshing.join()
    assert cache.stats().filled == 2


def test_tasks_get_many_and_refresh(engine: Engine, redis_url: str) -> None:
    create_products(engine)

    async def run() -> None:
        own = create_async_engine(engine.url)
        cache = AsyncCache(redis_url, own, name="product", policy=PATIENT)
        asked: list[list[int]] = []

        async def names(conn: AsyncConnection, ids: list[int]) -> dict[int, str]:
            asked.append(ids)
            return {row.id: row.name for row in await conn.execute(NAMES, {"ids": ids})}

        @cache.cached
        async def name(conn: AsyncConnection, product_id: int) -> str | None:
            return (await names(conn, [product_id])).get(product_id)

        name.many(names)
        try:
            found = await cache.get_many([1, 2], names, value_type=str | None)
            assert found == {1: "first", 2: "first"}
            assert await name.get_many([2, 3, 99]) == {2: "first", 3: "first", 99: None}
            assert asked == [[1, 2], [3, 99]]
            async with own.begin() as conn:
                await conn.run_sync(rename, 1, "second")
            assert await name(1) == "first"
            assert await name.refresh(1) == "second"
            assert await name(1) == "second"
        finally:
            await cache.close()
            await own.dispose()

    asyncio.run(run())


def test_two_processes_share_the_loads_of_many(
    cache: Cache, engine: Engine, redis_client: Redis
) -> None:
    """Both ask for all; whoever comes second waits for what the first is loading."""
    gate, slow, quick = Gate(), Names(), Names()

    def stopping(conn: Connection, ids: list[int]) -> dict[int, str]:
        gate.stop_here()
        return slow(conn, ids)

    with closing(Cache(redis_client, engine, name="product", policy=PATIENT)) as other:
        first = Thread(target=cache.get_many, args=([1, 2], stopping))
        first.start()
        gate.wait_until_reached()
        found: list[dict[int, str | None]] = []
        second = Thread(target=lambda: found.append(other.get_many([2, 3], quick)))
        second.start()
        until(lambda: other.stats().waits > 0)
        gate.open()
        first.join()
        second.join()

    assert found == [{2: "first", 3: "first"}]
    assert (slow.asked, quick.asked) == ([[1, 2]], [[3]])
