"""Redis tells no more, forgets, stops, freezes, is another: nothing old stays in a process."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from threading import Event
from time import monotonic

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import Engine, text

from datapatterns.cache_aside import Cache, CachePolicy, tracking
from datapatterns.cache_aside.tracking import _Listener
from datapatterns.embedded import EmbeddedServers, ValkeyServer
from tests.fixtures.caches import (
    ENOUGH_SECONDS,
    create_products,
    name_of,
    open_cache,
    rename,
    until,
)
from tests.fixtures.effort import THOROUGH
from tests.fixtures.local_tiers import is_kept, tier_of, trackers, until_kept, until_told

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.chaos]

POLICY = CachePolicy(vouched_seconds=60)
KEYS = range(1, 5)
WRITES = 1_000 if THOROUGH else 60
LOCAL = replace(POLICY, local_bytes=2**20)


@pytest.fixture(scope="module")
def shared_valkey() -> Iterator[ValkeyServer]:
    with EmbeddedServers() as servers:
        yield servers.valkey("own", settings={"appendonly": False, "save": ""})


@pytest.fixture
def valkey(shared_valkey: ValkeyServer) -> Iterator[ValkeyServer]:
    shared_valkey.start()
    with Redis.from_url(shared_valkey.url) as client:
        client.flushall()
    yield shared_valkey
    shared_valkey.stop()


@pytest.fixture
def redis(valkey: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(valkey.url) as client:
        yield client


@pytest.fixture
def cache(engine: Engine, valkey: ValkeyServer) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(valkey.url, engine, LOCAL) as cache:
        until_told(cache)
        yield cache


@pytest.fixture
def stranger(
    cache: Cache, engine: Engine, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cache]:
    """The same cache in another process, as far as this one can tell."""
    for module in ("backing", "relaying"):
        monkeypatch.setattr(f"datapatterns.cache_aside.{module}.forget_in_process", lambda *_: None)
    with open_cache(valkey.url, engine, POLICY) as stranger:
        read(stranger)
        until_kept(cache, lambda: read(cache))
        yield stranger


def read(cache: Cache, number: int = 1) -> str | None:
    return cache.get_or_load(number, lambda conn: name_of(conn, number))


def write(cache: Cache, name: str, number: int = 1) -> None:
    with cache.writes() as conn:
        rename(conn, number, name)
        cache.invalidate_in(conn, number)


def test_nothing_is_served_from_memory_while_nobody_tells(
    cache: Cache, stranger: Cache, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_track = Event()

    def track(*arguments: object) -> None:
        if not may_track.is_set():
            raise RedisConnectionError
        original(*arguments)  # type: ignore[arg-type]

    original = tracking._track  # noqa: SLF001 -- where it gets its way again
    monkeypatch.setattr(tracking, "_track", track)
    [connection] = trackers(redis)
    redis.client_kill_filter(_id=connection)
    until(lambda: not tier_of(cache).hears)
    kept = cache.stats().local_hits

    assert not is_kept(cache, "product:i1")
    write(stranger, "second")
    assert {read(cache) for _ in range(5)} == {"second"}
    assert cache.stats().local_hits == kept

    may_track.set()
    until_kept(cache, lambda: read(cache))
    assert read(cache) == "second"


@pytest.mark.usefixtures("stranger")
def test_a_flush_takes_everything_away(cache: Cache, redis: Redis) -> None:
    redis.flushall()

    until(lambda: not is_kept(cache, "product:i1"))
    assert read(cache) == "first"


def test_a_restart_takes_everything_away(
    cache: Cache, stranger: Cache, valkey: ValkeyServer
) -> None:
    valkey.kill()
    until(lambda: not tier_of(cache).hears)
    write(stranger, "second")
    assert read(cache) == "second"

    valkey.start()
    assert read(cache) == "second"
    until_kept(cache, lambda: read(cache))
    assert read(cache) == "second"


def test_a_new_generation_takes_everything_away(
    cache: Cache, stranger: Cache, engine: Engine
) -> None:
    """Nobody has named the write: a generation forgets all the same."""
    with engine.begin() as conn:
        rename(conn, 1, "second")
        conn.execute(text("UPDATE datapatterns.cache_target SET identity = 'another server'"))
    assert read(cache) == "first"
    assert stranger.relay().has_new_generation

    until(lambda: read(cache) == "second")
    until_kept(cache, lambda: read(cache))


def test_what_a_frozen_server_does_not_tell_is_found_out_in_two_heartbeats(
    cache: Cache, stranger: Cache, valkey: ValkeyServer
) -> None:
    valkey.pause()
    try:
        write(stranger, "second")
        assert stranger.stats().undelivered == 1
        # Whether the listener runs or not: what it heard last is good for so long.
        assert tier_of(cache).until <= monotonic() + 2 * tracking.HEARTBEAT_SECONDS
        until(lambda: tier_of(cache).until < monotonic())
        assert read(cache) == "second"
    finally:
        valkey.resume()
    until_kept(cache, lambda: read(cache))
    assert read(cache) == "second"


def test_a_listener_that_does_not_run_keeps_nothing_alive(
    cache: Cache, stranger: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the thread were starved: nothing of what is told is read any more."""
    stands_still, may_go_on = Event(), Event()
    wait = _Listener._wait  # noqa: SLF001 -- between two looks

    def stand_still(*arguments: object) -> None:
        stands_still.set()
        assert may_go_on.wait(2 * ENOUGH_SECONDS)
        wait(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_Listener, "_wait", stand_still)
    assert stands_still.wait(ENOUGH_SECONDS)
    write(stranger, "second")
    try:
        until(lambda: read(cache) == "second")
    finally:
        may_go_on.set()


@pytest.fixture
def processes(
    stranger: Cache, engine: Engine, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Cache]]:
    """Caches as in processes of their own: each has its connection."""
    assert stranger.name
    with ExitStack() as stack:
        caches = []
        for _ in range(3):
            monkeypatch.setattr(tracking, "_trackers", {})
            caches.append(stack.enter_context(open_cache(valkey.url, engine, LOCAL)))
            until_told(caches[-1])
        yield caches


def test_readers_and_writers_under_broken_connections_leave_nothing_stale(
    stranger: Cache, processes: list[Cache], redis: Redis
) -> None:
    draw = random.Random(5)  # noqa: S311 -- a schedule, no secret
    stop = Event()

    def read_on(cache: Cache) -> None:
        while not stop.wait(0.001):
            read_all(cache)

    with ThreadPoolExecutor(6) as pool:
        reading = [pool.submit(read_on, cache) for cache in processes * 2]
        for number in range(WRITES):
            write(stranger, f"name {number}", draw.choice(KEYS))
            if number % 10 == 0 and (connections := trackers(redis)):
                redis.client_kill_filter(_id=draw.choice(connections))
        stop.set()
        for each in reading:
            each.result(ENOUGH_SECONDS)

    expected = read_all(stranger)
    for cache in processes:
        until_heard(cache)
        assert read_all(cache) == expected
        until_kept(cache, lambda: read_all(cache), values=len(KEYS))  # noqa: B023 -- at once
        assert read_all(cache) == expected


def read_all(cache: Cache) -> dict[int, str | None]:
    return {key: read(cache, key) for key in KEYS}


def until_heard(cache: Cache) -> None:
    """Return when all that is told by now has been heard."""
    now = monotonic()
    until(lambda: tier_of(cache)._tracked_until > now + 2 * tracking.HEARTBEAT_SECONDS)  # noqa: SLF001
