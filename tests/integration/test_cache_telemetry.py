"""What a cache tells the application's monitoring, and that it tells no keys."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine

from datapatterns.breaker import FAILURES_MAX
from datapatterns.cache_aside import Cache, CachePolicy
from datapatterns.errors import CacheBusyError
from tests.fixtures.caches import PATIENT, Gate, create_products, name_of, open_cache, rename
from tests.fixtures.observers import Noted

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

CANARY = "canary-7d1f"
NOBODY = "redis://127.0.0.1:1"


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
def cache(engine: Engine, redis_url: str, redis_client: Redis, noted: Noted) -> Iterator[Cache]:
    assert redis_client.dbsize() == 0
    create_products(engine)
    with closing(Cache(redis_url, engine, name="product", policy=PATIENT, observer=noted)) as cache:
        yield cache


def read(cache: Cache, value: str | None = CANARY, *, key: str = CANARY) -> object:
    return cache.get_or_load(key, lambda _: value)


def test_reads_are_told_by_how_they_were_served(cache: Cache, noted: Noted) -> None:
    read(cache)
    read(cache)
    read(cache, None, key="absent")
    read(cache, None, key="absent")
    read(cache, CANARY * 1_000_000, key="large")

    stats = cache.stats()
    assert (stats.hits, stats.negative, stats.misses, stats.loads) == (2, 1, 3, 3)
    assert noted.total("datapatterns.cache.hits") == 2
    assert noted.total("datapatterns.cache.negative") == 1
    assert noted.total("datapatterns.cache.misses") == 3
    assert noted.total("datapatterns.cache.filled") == 2
    assert noted.reasons("datapatterns.cache.unstored") == {"size": 1}
    assert len(noted.durations["datapatterns.cache.load"]) == 3


def test_a_fill_that_is_refused_is_told_with_its_reason(cache: Cache, noted: Noted) -> None:
    def load(_: Connection) -> str:
        cache.invalidate(CANARY)
        return CANARY

    cache.get_or_load(CANARY, load)

    assert noted.reasons("datapatterns.cache.refused") == {"lease": 1}
    assert noted.total("datapatterns.cache.invalidated") == 1


def test_what_the_relay_repeats_is_told_apart_from_what_writers_send(
    cache: Cache, engine: Engine, noted: Noted
) -> None:
    cache.relay()
    with engine.begin() as conn:
        cache.invalidate_in(conn, CANARY, "another")
    cache.relay()

    assert noted.total("datapatterns.cache.invalidated") == 0
    assert noted.total("datapatterns.cache.relay.replayed") == cache.stats().replayed == 2
    assert noted.total("datapatterns.cache.relay.generations") == 0


def test_wrong_entries_are_counted(cache: Cache, engine: Engine, noted: Noted) -> None:
    @cache.cached
    def name(conn: Connection, product_id: int) -> str:
        return str(name_of(conn, product_id))

    name(1)
    with engine.begin() as conn:
        rename(conn, 1, CANARY)
    name.audit()

    assert noted.total("datapatterns.cache.violations") == cache.stats().violations == 1


def test_a_silent_redis_is_told_and_that_it_is_left_alone(
    cache: Cache, engine: Engine, noted: Noted
) -> None:
    cache.relay()  # from now on something may be cached
    with closing(Cache(NOBODY, engine, name="product", observer=noted)) as away:
        for _ in range(FAILURES_MAX):
            away.invalidate(CANARY)
        stats = away.stats()

    assert stats.is_open
    assert (stats.openings, stats.silences) == (1, FAILURES_MAX)
    assert noted.total("datapatterns.cache.openings") == 1
    assert stats.undelivered == FAILURES_MAX


def test_what_waits_for_a_place_is_timed_and_what_gets_none_is_counted(
    engine: Engine, noted: Noted
) -> None:
    policy, gate = CachePolicy(loads_at_once=1, wait_seconds=0.01), Gate()

    def load(_: Connection) -> str:
        gate.stop_here()
        return CANARY

    with (
        closing(Cache(NOBODY, engine, name="product", policy=policy, observer=noted)) as cache,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(cache.get_or_load, "first", load)
        gate.wait_until_reached()
        with pytest.raises(CacheBusyError):
            cache.get_or_load("second", load)
        gate.open()
        first.result()

    assert noted.total("datapatterns.cache.busy") == cache.stats().busy == 1
    assert len(noted.durations["datapatterns.cache.queue"]) == 1


def test_neither_keys_nor_values_are_told(
    cache: Cache, engine: Engine, noted: Noted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "datapatterns")
    read(cache)
    with cache.writes() as conn:
        cache.invalidate_in(conn, CANARY, tags=[CANARY])
    read(cache)
    cache.relay()
    with open_cache(NOBODY, engine) as away:
        for _ in range(FAILURES_MAX):
            read(away)
            away.invalidate(CANARY, tags=[CANARY])

    logged = " ".join(str(vars(record)) for record in caplog.records)
    assert CANARY not in str(noted.counts) + str(noted.durations) + logged
    assert len(noted.counts) > 3
