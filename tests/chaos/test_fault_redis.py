"""What clients see when something happens to Redis, and what is there afterwards."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event
from time import monotonic

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from datapatterns.embedded import EmbeddedServers, ValkeyServer
from datapatterns.errors import FaultRefusedError
from datapatterns.testing import RedisFaults, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.chaos]

ENOUGH_SECONDS = 30


@pytest.fixture(scope="module")
def servers() -> Iterator[EmbeddedServers]:
    with EmbeddedServers() as servers:
        yield servers


@pytest.fixture(scope="module")
def durable(servers: EmbeddedServers) -> ValkeyServer:
    return servers.valkey("durable")


@pytest.fixture(scope="module")
def forgetful(servers: EmbeddedServers) -> ValkeyServer:
    return servers.valkey("forgetful", settings={"appendonly": False})


@pytest.fixture(params=["durable", "forgetful"])
def server(request: pytest.FixtureRequest) -> ValkeyServer:
    found: ValkeyServer = request.getfixturevalue(request.param)
    with Redis.from_url(found.url) as client:
        client.flushall()
    return found


@pytest.fixture
def faults(server: ValkeyServer) -> Iterator[RedisFaults]:
    with RedisFaults(server) as faults:
        yield faults


@pytest.fixture
def client(server: ValkeyServer) -> Iterator[Redis]:
    """A client that tries each command once, and waits for a fifth of a second."""
    retry = Retry(NoBackoff(), 0)
    with closing(Redis.from_url(server.url, retry=retry, socket_timeout=0.2)) as client:
        yield client


def test_a_killed_connection_is_an_error_to_whoever_waits_for_a_reply(
    faults: RedisFaults, server: ValkeyServer
) -> None:
    retry = Retry(NoBackoff(), 0)
    with (
        closing(Redis.from_url(server.url)) as watcher,
        closing(Redis.from_url(server.url, retry=retry, socket_timeout=None)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(client.blpop, ["queue"], 60)
        # Killed before it waits, the connection would be replaced without a word.
        wait_until(lambda: "blpop" in [other["cmd"] for other in watcher.client_list()])
        faults.kill_clients()
        with pytest.raises(RedisConnectionError):
            waiting.result(ENOUGH_SECONDS)

        assert client.ping()


def test_an_idle_connection_that_was_killed_is_replaced_without_a_word(
    faults: RedisFaults, client: Redis
) -> None:
    client.set("cart", "apple")
    before = client.client_id()

    assert faults.kill_clients() == 1

    assert client.get("cart") == b"apple"
    assert client.client_id() != before


def test_only_clients_of_this_database_and_name_are_killed(
    faults: RedisFaults, server: ValkeyServer
) -> None:
    with (
        closing(Redis.from_url(server.url, client_name="till")) as till,
        closing(Redis.from_url(server.url, client_name="shop")) as shop,
        closing(Redis.from_url(server.url.replace("db=0", "db=1"), client_name="till")) as other,
    ):
        assert till.ping()
        assert shop.ping()
        assert other.ping()

        assert faults.kill_clients(name="till") == 1
        assert faults.kill_clients(name="till") == 0
        assert faults.kill_clients() == 1


def test_a_paused_server_lets_clients_wait_or_time_out(faults: RedisFaults, client: Redis) -> None:
    client.set("cart", "apple")
    faults.pause_clients(1)
    began = monotonic()

    with pytest.raises(RedisTimeoutError):
        client.get("cart")
    with RedisFaults(faults.url) as patient:
        assert patient.evict("cart") == 1

    assert monotonic() - began >= 0.8


def test_a_paused_write_waits_and_reads_go_on(faults: RedisFaults, client: Redis) -> None:
    client.set("cart", "apple")
    faults.pause_clients(60, writes_only=True)
    with pytest.raises(RedisTimeoutError):
        client.set("cart", "pear")

    assert client.get("cart") == b"apple"

    faults.resume_clients()
    client.set("cart", "plum")
    assert client.get("cart") == b"plum"


def test_a_frozen_server_is_a_time_out_until_it_goes_on(faults: RedisFaults, client: Redis) -> None:
    client.set("cart", "apple")
    faults.pause()
    with pytest.raises(RedisTimeoutError):
        client.get("cart")

    faults.resume()
    assert client.get("cart") == b"apple"


def test_what_is_still_frozen_goes_on_when_the_faults_close(
    server: ValkeyServer, client: Redis
) -> None:
    with RedisFaults(server) as faults:
        faults.pause()

    assert client.ping()


def test_a_flush_empties_this_database_alone(
    faults: RedisFaults, client: Redis, server: ValkeyServer
) -> None:
    with closing(Redis.from_url(server.url.replace("db=0", "db=1"))) as other:
        client.set("cart", "apple")
        other.set("cart", "pear")

        faults.flush()

        assert client.get("cart") is None
        assert other.get("cart") == b"pear"


def test_an_evicted_entry_is_a_miss_and_the_others_stay(faults: RedisFaults, client: Redis) -> None:
    client.mset({"cart": "apple", "till": "7"})

    assert faults.evict("cart", "nothing") == 1

    assert client.mget("cart", "till") == [None, b"7"]


def test_the_fixture_brings_a_server_of_its_own(
    datapatterns_redis_faults: RedisFaults, redis_url: str
) -> None:
    datapatterns_redis_faults.crash_and_restart(keep_data=False)

    assert datapatterns_redis_faults.url != redis_url


def test_a_killed_server_is_a_connection_error(client: Redis, server: ValkeyServer) -> None:
    client.ping()
    server.kill()
    try:
        with pytest.raises(RedisConnectionError):
            client.ping()
    finally:
        server.start()


def test_little_memory_evicts_the_oldest_entries(faults: RedisFaults, client: Redis) -> None:
    before = client.config_get("maxmemory*")
    with faults.limited_memory(headroom_bytes=2_000_000):
        for number in range(3_000):
            client.set(f"entry:{number}", "x" * 1_000)
        kept = client.dbsize()  # first: the server goes on evicting by itself
        evicted = client.info("stats")["evicted_keys"]

    assert evicted > 0
    assert kept + evicted >= 3_000
    assert client.config_get("maxmemory*") == before


def test_full_memory_without_eviction_is_an_error_and_keeps_all(
    faults: RedisFaults, client: Redis
) -> None:
    def fill() -> None:
        for number in range(3_000):
            client.set(f"entry:{number}", "x" * 1_000)

    with faults.limited_memory(headroom_bytes=1_000_000, policy="noeviction"):
        with pytest.raises(OutOfMemoryError):
            fill()
        assert client.get("entry:0") is not None

    client.set("entry", "fits again")


def test_a_crash_that_keeps_data_keeps_all_that_was_acknowledged(
    faults: RedisFaults, client: Redis, server: ValkeyServer
) -> None:
    before = server.pid
    for number in range(100):
        client.set(f"entry:{number}", number)

    faults.crash_and_restart(keep_data=True)

    assert client.dbsize() == 100
    assert server.pid != before


def test_a_crash_that_keeps_data_keeps_what_was_acknowledged_until_the_last_moment(
    faults: RedisFaults, server: ValkeyServer
) -> None:
    acknowledged = []
    begun = Event()

    def write() -> None:
        retry = Retry(NoBackoff(), 0)
        with closing(Redis.from_url(server.url, retry=retry)) as writer:
            for number in range(1_000_000):
                writer.set(f"entry:{number}", number)
                acknowledged.append(number)
                begun.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        assert begun.wait(ENOUGH_SECONDS)
        faults.crash_and_restart(keep_data=True)
        with pytest.raises(RedisConnectionError):
            writing.result(ENOUGH_SECONDS)

    with closing(Redis.from_url(server.url)) as client:
        kept = set(client.keys())
    assert kept >= {f"entry:{number}".encode() for number in acknowledged}
    assert len(kept) <= len(acknowledged) + 1  # one was on its way


def test_a_crash_that_keeps_no_data_keeps_none(faults: RedisFaults, client: Redis) -> None:
    client.set("cart", "apple")
    faults.crash_and_restart(keep_data=True)  # so that there are files to be forgotten
    faults.crash_and_restart(keep_data=False)

    assert client.get("cart") is None


def test_an_old_dump_brings_back_what_was_deleted_and_forgets_what_came_after(
    faults: RedisFaults, client: Redis
) -> None:
    client.mset({"cart": "apple", "till": "7"})
    dump = faults.save_dump()
    client.delete("cart")
    client.mset({"till": "8", "note": "new"})

    faults.restart_from_old_dump(dump)

    assert client.mget("cart", "till", "note") == [b"apple", b"7", None]
    client.set("cart", "pear")
    faults.restart_from_old_dump(dump)
    assert client.get("cart") == b"apple"


def test_a_dump_is_whole_while_others_write(faults: RedisFaults, server: ValkeyServer) -> None:
    def write() -> int:
        with closing(Redis.from_url(server.url)) as writer:
            for number in range(2_000):
                writer.set(f"entry:{number}", number)
        return 2_000

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        dump = faults.save_dump()
        assert writing.result(ENOUGH_SECONDS) == 2_000
    faults.restart_from_old_dump(dump)

    with closing(Redis.from_url(server.url)) as client:
        kept = client.dbsize()
        assert set(client.keys()) == {f"entry:{number}".encode() for number in range(kept)}


def test_a_dump_leaves_the_server_as_it_was(faults: RedisFaults, client: Redis) -> None:
    before = client.config_get("append*")
    faults.save_dump()

    client.set("cart", "apple")
    assert client.config_get("append*") == before


def test_dumps_are_removed_when_the_faults_close(server: ValkeyServer) -> None:
    with RedisFaults(server) as faults:
        folder = Path(faults.save_dump().folder)
        assert any(folder.rglob("*"))

    assert not folder.exists()


def limit_memory(faults: RedisFaults) -> None:
    with faults.limited_memory(headroom_bytes=1_000_000):
        pass


def test_a_server_that_is_not_embedded_is_neither_crashed_nor_frozen_nor_filled(
    server: ValkeyServer,
) -> None:
    with RedisFaults(server.url) as faults:
        refused: list[Callable[[], object]] = [
            faults.pause,
            faults.resume,
            faults.save_dump,
            lambda: faults.crash_and_restart(keep_data=True),
            lambda: limit_memory(faults),
        ]
        for fault in refused:
            with pytest.raises(FaultRefusedError, match="embedded ValkeyServer"):
                fault()
