"""Reading through a cache, on real servers."""

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text

from datapatterns.cache_aside import Cache, CachePolicy
from datapatterns.errors import CacheKeyError, SettingsError, UncacheableValueError
from datapatterns.sql.migrating import upgrade
from tests.fixtures.caches import (
    ENOUGH_SECONDS,
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

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def cache(engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(redis_client, engine) as cache:
        yield cache


def value_keys(redis: Redis) -> list[bytes | str]:
    return list(redis.keys("*:value:*"))


def never(_: Connection) -> str:
    raise AssertionError("this was in the cache")


def test_a_value_is_loaded_once(cache: Cache) -> None:
    assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "first"
    assert cache.get_or_load(1, never) == "first"

    stats = cache.stats()
    assert (stats.loads, stats.filled, stats.hits, stats.hit_ratio) == (1, 1, 1, 0.5)


def test_a_cached_function_is_called_without_a_connection(cache: Cache) -> None:
    product = cache.cached(load_product)

    assert product(1) == product(product_id=1) == Product(1, "first")
    assert cache.stats().loads == 1


def test_equal_calls_are_one_entry(cache: Cache) -> None:
    @cache.cached
    def names(conn: Connection, first: int, *, last: int = 9) -> list[str]:
        found = conn.scalars(
            text("SELECT name FROM product WHERE id BETWEEN :first AND :last"),
            {"first": first, "last": last},
        )
        return list(found)

    assert names(1) == names(first=1) == names(1, last=9)
    assert len(names(1, last=3)) == 3
    assert cache.stats().loads == 2


def test_a_cache_holds_one_functions_results(cache: Cache) -> None:
    cache.cached(load_product)

    with pytest.raises(SettingsError, match="another function"):
        cache.cached(name_of)


def test_functions_that_share_their_name_are_told_apart(cache: Cache) -> None:
    cache.cached(lambda _, key: key)

    with pytest.raises(SettingsError, match="another function"):
        cache.cached(lambda _, key: -key)


def test_parameters_may_have_names_for_type_checkers_alone(cache: Cache) -> None:
    def load(conn: "OnlyForCheckers", key: int) -> list[int]:  # type: ignore[name-defined]  # noqa: ARG001, F821 -- that is the point
        return [key]

    assert cache.cached(load)(1) == cache.cached(load)(1) == [1]


def test_a_result_must_have_a_name_that_can_be_found(cache: Cache) -> None:
    def load(conn: Connection) -> "OnlyForCheckers":  # type: ignore[name-defined]  # noqa: ARG001, F821 -- that is the point
        return None

    with pytest.raises(SettingsError, match="import what the function returns"):
        cache.cached(load)


def test_absence_is_remembered_and_forgotten_by_an_insert(cache: Cache) -> None:
    product = cache.cached(load_product)
    assert product(21) is None
    assert product(21) is None
    assert cache.stats().loads == 1

    with cache.writes() as conn:
        conn.execute(text("INSERT INTO product VALUES (21, 'new')"))
        product.invalidate_in(conn, 21)

    assert product(21) == Product(21, "new")


def test_a_second_process_finds_what_the_first_has_stored(
    cache: Cache, engine: Engine, redis_url: str
) -> None:
    cache.get_or_load(1, lambda conn: name_of(conn, 1))

    with open_cache(redis_url, engine) as second:
        assert second.get_or_load(1, never) == "first"


def test_errors_of_the_loader_are_not_cached_and_free_the_lease(
    cache: Cache, redis_client: Redis
) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.get_or_load(1, lambda _: 1 // 0)

    assert redis_client.keys("*:lease:*") == []
    assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "first"


def test_what_would_come_back_as_another_type_is_refused(cache: Cache) -> None:
    with pytest.raises(UncacheableValueError):
        cache.get_or_load(1, lambda conn: name_of(conn, 1), value_type=int)
    with pytest.raises(CacheKeyError):
        cache.get_or_load(1.5, never)  # type: ignore[arg-type]  # that is the point


def test_unusual_keys_and_values_come_back(cache: Cache) -> None:
    key = ("Brötchen {}:\0\r\n", -5, b"\xff", None)
    value = {"ü\0": [None, "x" * 100_000, 2**63, b"\0"]}

    for _ in range(2):
        assert cache.get_or_load(key, lambda _: value) == value
    assert cache.stats().loads == 1


def test_too_large_a_value_is_served_and_not_stored(engine: Engine, redis_client: Redis) -> None:
    policy = CachePolicy(value_bytes_max=1_000, redis_timeout_seconds=5)
    with open_cache(redis_client, engine, policy) as cache:
        assert len(cache.get_or_load(1, lambda _: "x" * 1_000)) == 1_000
        assert value_keys(redis_client) == []
        assert redis_client.keys("*:lease:*") == []
        assert cache.stats().unstored == 1


def test_values_and_absences_expire(cache: Cache, redis_client: Redis) -> None:
    product = cache.cached(load_product)
    product(1)
    product(99)

    lives = sorted(redis_client.pttl(key) for key in value_keys(redis_client))
    assert 25_000 < lives[0] <= 33_000
    assert 265_000 < lives[1] <= 330_000


def test_a_value_past_its_time_is_served_while_one_caller_loads(
    cache: Cache, engine: Engine, redis_client: Redis
) -> None:
    gate = Gate()

    def slowly(conn: Connection) -> str | None:
        gate.stop_here()
        return name_of(conn, 1)

    cache.get_or_load(1, lambda _: "old")
    [key] = value_keys(redis_client)
    stored = redis_client.get(key)
    assert isinstance(stored, bytes)
    raw = bytearray(stored)
    struct.pack_into("<q", raw, 4, 0)
    redis_client.set(key, bytes(raw), keepttl=True)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(cache.get_or_load, 1, slowly)
        gate.wait_until_reached()
        with open_cache(redis_client, engine) as second:
            assert second.get_or_load(1, never) == "old"
            assert second.stats().stale == 1
        gate.open()

        assert other.result(ENOUGH_SECONDS) == "first"
    assert cache.get_or_load(1, never) == "first"


@pytest.mark.parametrize(
    "raw",
    [b"", b"x", b"\x01" * 16, b"\x80\x04\x95pickle", b"\0" * 100_000],
    ids=["empty", "short", "header only", "pickle", "zeros"],
)
def test_foreign_bytes_are_a_miss_and_are_replaced(
    cache: Cache, redis_client: Redis, raw: bytes
) -> None:
    cache.get_or_load(1, lambda conn: name_of(conn, 1))
    [key] = value_keys(redis_client)
    redis_client.set(key, raw)

    assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "first"
    assert cache.get_or_load(1, never) == "first"


def test_a_key_of_another_type_costs_no_answer(cache: Cache, redis_client: Redis) -> None:
    cache.get_or_load(1, lambda conn: name_of(conn, 1))
    [key] = value_keys(redis_client)
    redis_client.delete(key)
    redis_client.lpush(key, "something else")

    assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "first"
    assert cache.get_or_load(2, lambda conn: name_of(conn, 2)) == "first"


def test_two_releases_share_a_cache_without_reading_each_other(
    cache: Cache, engine: Engine, redis_client: Redis
) -> None:
    cache.get_or_load(1, lambda conn: load_product(conn, 1), value_type=Product)

    with open_cache(redis_client, engine) as next_release:
        assert next_release.get_or_load(1, lambda conn: name_of(conn, 1)) == "first"


def test_a_fill_after_an_invalidation_is_refused(cache: Cache) -> None:
    """The stale set: a reader loads, a writer commits and deletes, the reader stores."""
    gate = Gate()

    def slowly(conn: Connection) -> str | None:
        found = name_of(conn, 1)
        gate.stop_here()
        return found

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(cache.get_or_load, 1, slowly)
        gate.wait_until_reached()
        with cache.writes() as conn:
            rename(conn, 1, "second")
            cache.invalidate_in(conn, 1)
        gate.open()

        assert reader.result(ENOUGH_SECONDS) == "first"
    assert cache.stats().refused == 1
    assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "second"


def test_a_write_is_seen_by_its_process_though_an_older_load_is_under_way(cache: Cache) -> None:
    gate = Gate()

    def slowly(conn: Connection) -> str | None:
        found = name_of(conn, 1)
        gate.stop_here()
        return found

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(cache.get_or_load, 1, slowly)
        gate.wait_until_reached()
        with cache.writes() as conn:
            rename(conn, 1, "second")
            cache.invalidate_in(conn, 1)

        assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "second"
        gate.open()
        assert reader.result(ENOUGH_SECONDS) == "first"
    assert cache.get_or_load(1, never) == "second"


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_the_applications_isolation_level_does_not_reach_the_loader(
    engine: Engine, redis_client: Redis, level: str
) -> None:
    """An old snapshot would store an old value under a lease that is younger than the write."""
    create_products(engine)
    with open_cache(redis_client, engine.execution_options(isolation_level=level)) as cache:

        def load(conn: Connection) -> list[str | None]:
            before = name_of(conn, 1)
            with engine.begin() as other:
                rename(other, 1, "second")
            return [before, name_of(conn, 1)]

        assert cache.get_or_load(1, load) == ["first", "second"]


def test_callers_of_another_type_do_not_get_each_others_value(cache: Cache) -> None:
    gate = Gate()

    def slowly(_: Connection) -> str:
        gate.stop_here()
        return "plain"

    def load(conn: Connection) -> Product | None:
        return load_product(conn, 1)

    with ThreadPoolExecutor(2) as pool:
        plain = pool.submit(cache.get_or_load, 1, slowly)
        gate.wait_until_reached()
        other = pool.submit(cache.get_or_load, 1, load, value_type=Product)
        until(lambda: cache.stats().waits > 0)
        gate.open()

        assert plain.result(ENOUGH_SECONDS) == "plain"
        assert other.result(ENOUGH_SECONDS) == Product(1, "first")


@pytest.mark.parametrize("is_late", [False, True])
def test_who_comes_after_the_fill_was_sent_looks_for_himself(
    cache: Cache, redis_client: Redis, *, is_late: bool
) -> None:
    """What was stored may be invalidated again before the one who stored it has learned of it."""
    gate = Gate()

    def load_and_pause(conn: Connection) -> str | None:
        if is_late:
            redis_client.client_pause(20_000, all=False)  # no write is carried out
        else:
            gate.stop_here()
        return name_of(conn, 1)

    cache.get_or_load(2, lambda conn: name_of(conn, 2))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_load, 1, load_and_pause)
        try:
            if is_late:
                until(lambda: redis_client.info("clients")["blocked_clients"] == 1)
            else:
                gate.wait_until_reached()
            second = pool.submit(cache.get_or_load, 1, never)
            # What a caller that waits does can only be seen from inside.
            [flight] = cache._driver._flights._flights.values()  # noqa: SLF001
            until(lambda: bool(flight.landed._cond._waiters))  # type: ignore[attr-defined]  # noqa: SLF001 -- CPython's
        finally:
            redis_client.client_unpause()
            gate.open()
        assert first.result(ENOUGH_SECONDS) == second.result(ENOUGH_SECONDS) == "first"
    assert cache.stats().joined == (0 if is_late else 1)


@pytest.mark.parametrize(
    "url",
    ["", "http://cache", "redis://:se#cret@cache", "redis://cache:se", "redis://cache?no=option"],
)
def test_a_url_that_cannot_be_used_is_refused_without_quoting_it(engine: Engine, url: str) -> None:
    with pytest.raises(SettingsError, match="redis://user:password") as refused:
        Cache(url, engine, name="product")

    assert "se#" not in str(refused.value)
    # A parser's own error, which may quote the address, is not shown.
    assert refused.value.__context__ is None or refused.value.__suppress_context__


def test_a_prefix_that_could_be_mistaken_is_refused(engine: Engine, redis_client: Redis) -> None:
    with pytest.raises(SettingsError, match="prefix"):
        Cache(redis_client, engine, name="product", target="shop:eu")


def test_another_schema_works_the_same(engine: Engine, redis_client: Redis) -> None:
    create_products(engine)
    with engine.begin() as conn:
        upgrade(conn, schema="elsewhere")
        conn.execute(text("DROP SCHEMA datapatterns CASCADE"))
    elsewhere = Cache(redis_client, engine, name="product", policy=PATIENT, schema="elsewhere")
    with closing(elsewhere) as cache:
        product = cache.cached(load_product)
        product(1)
        with cache.writes() as conn:
            rename(conn, 1, "second")
            product.invalidate_in(conn, 1)

        assert product(1) == Product(1, "second")
        assert cache.relay().transactions == 1
