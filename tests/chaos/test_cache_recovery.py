"""Redis comes back under many callers: the database is not stormed, and nothing old is served."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text

from datapatterns.cache_aside import Cache, CachePolicy
from datapatterns.embedded import EmbeddedServers, ValkeyServer
from tests.fixtures.caches import ENOUGH_SECONDS, create_products, name_of, open_cache, until

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.chaos]

CALLERS, KEYS = 100, 20
POLICY = CachePolicy(
    loads_at_once=4, wait_seconds=ENOUGH_SECONDS, lease_seconds=ENOUGH_SECONDS, vouched_seconds=60
)


class Loads:
    """Counts how many loads run at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: dict[int, int] = {}
        self.most = self.most_of_one = 0

    def load(self, conn: Connection, number: int) -> str | None:
        with self._lock:
            self._running[number] = self._running.get(number, 0) + 1
            self.most = max(self.most, sum(self._running.values()))
            self.most_of_one = max(self.most_of_one, self._running[number])
        try:
            conn.execute(text("SELECT pg_sleep(0.01)"))  # the work
            return name_of(conn, number)
        finally:
            with self._lock:
                self._running[number] -= 1


@pytest.fixture(scope="module")
def servers() -> Iterator[EmbeddedServers]:
    with EmbeddedServers() as servers:
        yield servers


@pytest.fixture
def valkey(servers: EmbeddedServers, request: pytest.FixtureRequest) -> ValkeyServer:
    return servers.valkey(f"v{len(request.node.name)}")


def write_all(engine: Engine, cache: Cache, name: str) -> None:
    """Write as somebody who cannot tell Redis, nor this process."""
    with engine.begin() as conn:
        conn.execute(text("UPDATE product SET name = :name"), {"name": name})
        cache.invalidate_in(conn, *range(1, KEYS + 1))


def has_old_values(valkey: ValkeyServer) -> bool:
    with Redis.from_url(valkey.url) as client:
        return sum(b":value:" in key for key in client.scan_iter()) == KEYS


def test_threads_are_served_what_is_right_and_the_database_is_not_stormed(
    engine: Engine, valkey: ValkeyServer
) -> None:
    create_products(engine, KEYS)
    loads, away, wrong = Loads(), Loads(), list[str | None]()
    is_away, is_written, stop = Event(), Event(), Event()
    with (
        open_cache(valkey.url, engine, POLICY) as cache,
        ThreadPoolExecutor(CALLERS) as pool,
    ):

        def read(number: int) -> str | None:
            counted = away if is_away.is_set() else loads
            return cache.get_or_load(number, lambda conn: counted.load(conn, number))

        def call(caller: int) -> int:
            calls = 0
            while not stop.is_set():
                is_late = is_written.is_set()
                name = read((caller + calls) % KEYS + 1)
                if is_late and name != "second":
                    wrong.append(name)
                calls += 1
            return calls

        assert {read(number) for number in range(1, KEYS + 1)} == {"first"}
        is_away.set()
        valkey.pause()  # so that the values of before are there when it goes on
        callers = [pool.submit(call, caller) for caller in range(CALLERS)]
        until(lambda: cache.stats().bypassed > CALLERS)
        write_all(engine, cache, "second")
        is_written.set()
        valkey.resume()
        is_away.clear()
        assert has_old_values(valkey)
        until(lambda: cache.stats().hits > CALLERS)
        stop.set()
        assert all(each.result(ENOUGH_SECONDS) for each in callers)

    assert wrong == []
    assert away.most <= POLICY.loads_at_once
    # Leased loads are one for each key, beside those that began while Redis was away.
    assert loads.most <= KEYS + POLICY.loads_at_once
