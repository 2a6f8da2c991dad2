"""Redis stops, freezes, forgets, or comes back with what had been deleted: no page is lost, no
value is stale once it answers again."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Event, Lock, Semaphore
from time import monotonic

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine

from datapatterns.cache_aside import Cache, CachePolicy
from datapatterns.embedded import EmbeddedServers, ValkeyServer
from datapatterns.errors import CacheBusyError, ServerUnavailableError
from tests.fixtures.caches import (
    ENOUGH_SECONDS,
    Gate,
    create_products,
    name_of,
    open_cache,
    rename,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.chaos]

POLICY = CachePolicy(vouched_seconds=60)


@pytest.fixture(scope="module")
def servers() -> Iterator[EmbeddedServers]:
    with EmbeddedServers() as servers:
        yield servers


@pytest.fixture(scope="module")
def shared_valkey(servers: EmbeddedServers) -> ValkeyServer:
    return servers.valkey("own", settings={"appendonly": False, "save": ""})


@pytest.fixture
def valkey(shared_valkey: ValkeyServer) -> Iterator[ValkeyServer]:
    shared_valkey.start()
    with Redis.from_url(shared_valkey.url) as client:
        client.flushall()
    yield shared_valkey
    shared_valkey.stop()


@pytest.fixture
def cache(engine: Engine, valkey: ValkeyServer) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(valkey.url, engine, POLICY) as cache:
        yield cache


def read(cache: Cache, number: int = 1) -> str | None:
    return cache.get_or_load(number, lambda conn: name_of(conn, number))


def write(cache: Cache, name: str) -> None:
    with cache.writes() as conn:
        rename(conn, 1, name)
        cache.invalidate_in(conn, 1)


def read_until_hit(cache: Cache) -> str | None:
    """Read until a value comes from Redis again."""
    hits = cache.stats().hits
    deadline = monotonic() + ENOUGH_SECONDS
    while monotonic() < deadline:
        value = read(cache)
        if cache.stats().hits > hits:
            return value
    raise AssertionError("no hit any more")


def test_pages_are_served_and_written_while_redis_is_stopped(
    cache: Cache, valkey: ValkeyServer
) -> None:
    assert (read(cache), read(cache)) == ("first", "first")

    valkey.stop()
    assert read(cache) == "first"
    write(cache, "second")
    assert read(cache) == "second"
    assert cache.stats().undelivered == 1
    with pytest.raises(ServerUnavailableError):
        cache.relay()

    valkey.start()
    assert read_until_hit(cache) == "second"


def test_a_frozen_redis_costs_a_few_time_outs_and_no_page(
    cache: Cache, valkey: ValkeyServer
) -> None:
    read(cache)
    valkey.pause()
    try:
        began = monotonic()
        values = [read(cache) for _ in range(200)]
        seconds = monotonic() - began
        write(cache, "second")
        assert read(cache) == "second"
    finally:
        valkey.resume()

    assert set(values) == {"first"}
    # Each time-out is a quarter of a second; 200 of them would take 50.
    assert seconds < 10
    assert read_until_hit(cache) == "second"


def test_writers_do_not_wait_for_a_frozen_redis_each_time(
    cache: Cache, valkey: ValkeyServer
) -> None:
    read(cache)
    valkey.pause()
    try:
        began = monotonic()
        for number in range(80):
            write(cache, str(number))
        seconds = monotonic() - began
    finally:
        valkey.resume()

    # Each time-out is a quarter of a second; 80 of them would take 20.
    assert seconds < 12
    assert read_until_hit(cache) == "79"


def test_a_frozen_redis_that_kept_the_old_value_does_not_serve_it(
    cache: Cache, valkey: ValkeyServer
) -> None:
    """The delete was lost; the value is still there, and so is the relay's mark."""
    read(cache)
    valkey.pause()
    try:
        write(cache, "second")
    finally:
        valkey.resume()

    assert read(cache) == "second"
    assert read_until_hit(cache) == "second"


def test_what_an_old_dump_brings_back_is_not_served(
    cache: Cache, engine: Engine, valkey: ValkeyServer
) -> None:
    read(cache)
    with Redis.from_url(valkey.url) as client:
        client.save()
    write(cache, "second")
    assert cache.relay().transactions == 1  # so no later round will send it again
    assert read(cache) == "second"
    valkey.kill()
    valkey.start()
    with Redis.from_url(valkey.url) as client:
        assert client.keys("*:value:*") != []

    with open_cache(valkey.url, engine, POLICY) as another:
        assert read(another) == "second"
    assert read(cache) == "second"
    assert cache.relay().has_new_generation is False


def test_writers_that_an_old_dump_does_not_know_admit_no_older_snapshot(
    cache: Cache, engine: Engine, valkey: ValkeyServer
) -> None:
    moment = engine.execution_options(isolation_level="REPEATABLE READ")
    with moment.connect() as conn, open_cache(valkey.url, engine, POLICY) as writer:
        cache.relay()
        assert name_of(conn, 2) == "first"
        with Redis.from_url(valkey.url) as client:
            client.save()  # with the milestone, and nobody who wrote
        write(writer, "second")
        valkey.kill()
        valkey.start()

        found = cache.get_or_load(1, lambda own: name_of(own, 1), within=conn)
        assert found == "first"
        assert cache.stats().filled == 0
    assert read(cache) == "second"


def test_a_process_that_talks_to_nobody_while_redis_restarts_notices(
    cache: Cache, engine: Engine, valkey: ValkeyServer
) -> None:
    """Its idle connection breaks at the first read, within the second that it trusts the gate."""
    with open_cache(valkey.url, engine, POLICY) as writer:
        read(cache)
        with Redis.from_url(valkey.url) as client:
            client.save()
        write(writer, "second")
        assert writer.relay().transactions == 1
        assert read(cache) == "second"
        assert read(cache) == "second"
    valkey.kill()
    valkey.start()

    assert read(cache) == "second"


def test_a_flush_costs_loads_and_nothing_else(cache: Cache, valkey: ValkeyServer) -> None:
    read(cache)
    with Redis.from_url(valkey.url) as client:
        client.flushall()

    assert read(cache) == "first"
    write(cache, "second")
    assert read_until_hit(cache) == "second"


def test_without_any_relay_a_lost_delete_is_mended_by_a_reader(
    engine: Engine, valkey: ValkeyServer
) -> None:
    create_products(engine)
    with open_cache(valkey.url, engine, CachePolicy(vouched_seconds=0.2)) as cache:
        assert read(cache) == "first"
        with engine.begin() as conn:
            rename(conn, 1, "second")
            cache.invalidate_in(conn, 1)

        deadline = monotonic() + ENOUGH_SECONDS
        while read(cache) != "second":
            assert monotonic() < deadline
        assert read_until_hit(cache) == "second"


def test_the_database_gets_a_bounded_number_of_loads(engine: Engine) -> None:
    lock, running, most = Lock(), 0, 0

    def load(conn: Connection) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        conn.exec_driver_sql("SELECT pg_sleep(0.005)").close()
        with lock:
            running -= 1
        return 5

    policy = CachePolicy(loads_at_once=3, wait_seconds=ENOUGH_SECONDS)
    with open_cache("redis://127.0.0.1:1", engine, policy) as cache, ThreadPoolExecutor(30) as pool:
        values = list(pool.map(lambda key: cache.get_or_load(key, load), range(150)))

    assert values == [5] * 150
    assert 1 <= most <= 3


def test_a_server_that_speaks_something_else_costs_no_page_and_no_write(engine: Engine) -> None:
    create_products(engine)

    class Babble(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1_000)
            self.request.sendall(b"\x15\x03\x01\x00\x02\x02\x50")  # of TLS: an alert

    with ThreadingTCPServer(("127.0.0.1", 0), Babble) as server, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(server.serve_forever)
        with open_cache(f"redis://127.0.0.1:{server.server_address[1]}", engine) as cache:
            assert read(cache) == "first"
            write(cache, "second")
            assert read(cache) == "second"
        server.shutdown()
        serving.result(ENOUGH_SECONDS)


def test_no_place_in_time_is_an_error_with_advice(engine: Engine) -> None:
    gate = Gate()
    policy = CachePolicy(loads_at_once=1, wait_seconds=0.05)

    def hang(_: Connection) -> int:
        gate.stop_here()
        return 5

    with open_cache("redis://127.0.0.1:1", engine, policy) as cache, ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(cache.get_or_load, 1, hang)
        gate.wait_until_reached()
        with pytest.raises(CacheBusyError, match="loads_at_once"):
            cache.get_or_load(2, lambda _: 6)
        gate.open()
        assert hanging.result(ENOUGH_SECONDS) == 5


def test_callers_of_one_key_share_loads_while_redis_is_away(engine: Engine) -> None:
    callers = 30
    come = Semaphore(0)
    all_have_come = Event()

    def load(conn: Connection) -> int:
        assert all_have_come.wait(ENOUGH_SECONDS)
        conn.exec_driver_sql("SELECT pg_sleep(0.2)").close()  # the work
        return 5

    policy = CachePolicy(wait_seconds=ENOUGH_SECONDS)
    with (
        open_cache("redis://127.0.0.1:1", engine, policy) as cache,
        ThreadPoolExecutor(callers) as pool,
    ):

        def call() -> int:
            come.release()
            return cache.get_or_load(1, load)

        futures = [pool.submit(call) for _ in range(callers)]
        for _ in range(callers):
            assert come.acquire(timeout=ENOUGH_SECONDS)
        all_have_come.set()

        assert {future.result(ENOUGH_SECONDS) for future in futures} == {5}
    # Those who came while the first load ran share a second one, which began after they asked.
    assert cache.stats().loads <= 3
