"""What Redis' clients see of a broken network, and what the server holds afterwards."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from time import monotonic
from urllib.parse import urlsplit

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from datapatterns.testing import FaultProxy, wait_until
from datapatterns.testing.faults import FaultProxyFactory

pytestmark = pytest.mark.redis

ENOUGH_SECONDS = 20


@pytest.fixture
def proxy(redis_url: str, datapatterns_fault_proxy: FaultProxyFactory) -> FaultProxy[str]:
    return datapatterns_fault_proxy(redis_url)


@pytest.fixture
def broken(proxy: FaultProxy[str]) -> Iterator[Redis]:
    """A client through the proxy that tries each command once."""
    with closing(Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0))) as client:
        yield client


def count_once(client: Redis) -> None:
    client.incrby("count", 1)


def count_in_a_transaction(client: Redis) -> None:
    with client.pipeline(transaction=True) as pipeline:
        pipeline.incrby("count", 1)
        pipeline.execute()


def count_by_script(client: Redis) -> None:
    client.eval("return redis.call('INCR', KEYS[1])", 1, "count")


WAYS_TO_COUNT = [
    (count_once, "INCRBY"),
    (count_in_a_transaction, "EXEC"),
    (count_by_script, "eval"),
]


@pytest.mark.parametrize(("count", "command"), WAYS_TO_COUNT)
def test_a_lost_reply_does_not_tell_that_it_was_counted(
    count: Callable[[Redis], None],
    command: str,
    proxy: FaultProxy[str],
    broken: Redis,
    redis_client: Redis,
) -> None:
    trap = proxy.cut_next_reply_to(command)

    with pytest.raises(RedisConnectionError):
        count(broken)

    assert trap.has_fired
    assert redis_client.get("count") == b"1"


@pytest.mark.parametrize(("count", "command"), WAYS_TO_COUNT)
def test_a_lost_command_looks_the_same_and_was_not_counted(
    count: Callable[[Redis], None],
    command: str,
    proxy: FaultProxy[str],
    broken: Redis,
    redis_client: Redis,
) -> None:
    trap = proxy.cut_before_request(command)

    with pytest.raises(RedisConnectionError):
        count(broken)

    assert trap.has_fired
    assert redis_client.get("count") is None


def test_a_client_with_redis_pys_own_retries_counts_once_too_often(
    proxy: FaultProxy[str], redis_client: Redis
) -> None:
    address = urlsplit(proxy.url)
    database = redis_client.connection_pool.connection_kwargs.get("db", 0)
    with closing(Redis(str(address.hostname), address.port or 0, db=database)) as client:
        client.ping()
        proxy.cut_next_reply_to("INCRBY")

        assert client.incrby("count", 1) == 2

    assert redis_client.get("count") == b"2"


def test_the_next_call_works_again(proxy: FaultProxy[str], broken: Redis) -> None:
    proxy.cut_next_reply_to("SET")
    with pytest.raises(RedisConnectionError):
        broken.set("cart", "apple")

    assert broken.get("cart") == b"apple"


def test_a_trap_may_be_set_for_one_key(
    proxy: FaultProxy[str], broken: Redis, redis_client: Redis
) -> None:
    trap = proxy.cut_next_reply_to("set cart:7")
    broken.set("cart:70", "apple")
    broken.set("note", "set cart:7")
    assert not trap.has_fired

    with pytest.raises(RedisConnectionError):
        broken.set("cart:7", "pear")

    trap.wait()
    assert redis_client.mget("cart:70", "cart:7") == [b"apple", b"pear"]


def test_the_other_commands_of_the_same_pipeline_are_done_too(
    proxy: FaultProxy[str], broken: Redis, redis_client: Redis
) -> None:
    trap = proxy.cut_next_reply_to("INCRBY second")

    with broken.pipeline(transaction=False) as pipeline:
        for key in ("first", "second", "third"):
            pipeline.incrby(key, 1)
        with pytest.raises(RedisConnectionError):
            pipeline.execute()

    assert trap.has_fired
    wait_until(lambda: redis_client.get("third"))
    assert redis_client.mget("first", "second", "third") == [b"1", b"1", b"1"]


def test_what_passes_is_not_changed(broken: Redis) -> None:
    wide = bytes(range(256)) * 8_000
    broken.set("wide", wide)
    broken.hset("cart", mapping={"apple": 2, "": "\r\n"})
    broken.rpush("list", *range(1_000))

    assert broken.get("wide") == wide
    assert broken.hgetall("cart") == {b"apple": b"2", b"": b"\r\n"}
    assert broken.lrange("list", 0, -1) == [str(number).encode() for number in range(1_000)]
    assert broken.get("nothing") is None


@pytest.mark.parametrize("protocol", [2, 3])
def test_messages_of_a_subscription_pass_and_count_as_no_reply(
    protocol: int, proxy: FaultProxy[str], redis_client: Redis
) -> None:
    retry = Retry(NoBackoff(), 0)
    with (
        closing(Redis.from_url(proxy.url, protocol=protocol, retry=retry)) as client,
        client.pubsub() as listener,  # type: ignore[no-untyped-call] # redis-py leaves it so
    ):
        listener.subscribe("news", "weather")
        wait_until(lambda: redis_client.publish("news", "sun"))  # somebody has subscribed
        heard = wait_until(lambda: _message(listener.get_message(timeout=1)))

        trap = proxy.cut_next_reply_to("INCRBY")
        with pytest.raises(RedisConnectionError):
            client.incrby("count", 1)

    assert heard == b"sun"
    assert trap.has_fired
    assert redis_client.get("count") == b"1"


def _message(heard: dict[str, object] | None) -> object:
    return heard["data"] if heard and heard["type"] == "message" else None


def test_asyncio_sees_the_same(proxy: FaultProxy[str], redis_client: Redis) -> None:
    async def count() -> None:
        async with AsyncRedis.from_url(proxy.url) as client:
            client.set_retry(None)  # type: ignore[arg-type]
            await client.incrby("count", 1)

    trap = proxy.cut_next_reply_to("INCRBY")
    with pytest.raises(RedisConnectionError):
        asyncio.run(count())

    assert trap.has_fired
    assert redis_client.get("count") == b"1"


def test_a_write_that_timed_out_may_have_happened(
    proxy: FaultProxy[str], redis_client: Redis
) -> None:
    retry = Retry(NoBackoff(), 0)
    with closing(Redis.from_url(proxy.url, socket_timeout=0.2, retry=retry)) as client:
        client.ping()
        proxy.drop_replies()
        with pytest.raises(RedisTimeoutError):
            client.set("cart", "apple")
        assert wait_until(lambda: redis_client.get("cart")) == b"apple"

        proxy.pass_through()
        assert client.get("cart") == b"apple"  # and no late reply to the SET


def test_a_write_into_a_black_hole_has_not_happened_yet(
    proxy: FaultProxy[str], redis_client: Redis
) -> None:
    retry = Retry(NoBackoff(), 0)
    with closing(Redis.from_url(proxy.url, socket_timeout=0.2, retry=retry)) as client:
        client.ping()
        proxy.blackhole()
        with pytest.raises(RedisTimeoutError):
            client.set("cart", "apple")
        assert redis_client.get("cart") is None

        # The client has given up, and the network has not.
        proxy.pass_through()
        assert wait_until(lambda: redis_client.get("cart")) == b"apple"


def test_cut_connections_are_errors_and_new_ones_work(
    proxy: FaultProxy[str], broken: Redis
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(broken.blpop, ["queue"], 0)
        proxy.wait_for_connections(1)
        assert proxy.cut() == 1
        with pytest.raises(RedisConnectionError):
            waiting.result(ENOUGH_SECONDS)

    assert broken.ping()


def test_a_refusing_server_is_a_connection_error(proxy: FaultProxy[str], broken: Redis) -> None:
    proxy.refuse()
    with pytest.raises(RedisConnectionError, match="refused"):
        broken.ping()

    proxy.pass_through()
    assert broken.ping()


def test_a_reply_may_break_off_in_its_middle(proxy: FaultProxy[str], broken: Redis) -> None:
    broken.set("cart", "apple")
    trap = proxy.cut_after_bytes(3)

    with pytest.raises(RedisConnectionError):
        broken.get("cart")

    assert trap.has_fired


def test_the_bytes_before_the_break_arrive(proxy: FaultProxy[str]) -> None:
    proxy.cut_after_bytes(3)
    with socket.create_connection(("127.0.0.1", proxy.port), ENOUGH_SECONDS) as client:
        client.sendall(b"*1\r\n$4\r\nPING\r\n")
        with client.makefile("rb") as replies:
            assert replies.read() in {b"+PO", b"-NO"}  # there may be a password


def test_latency_counts_on_each_way(proxy: FaultProxy[str], broken: Redis) -> None:
    broken.ping()
    proxy.latency_seconds = 0.05
    began = monotonic()
    broken.ping()

    assert monotonic() - began >= 0.1


def test_what_is_not_redis_is_hung_up_on(
    proxy: FaultProxy[str], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), ENOUGH_SECONDS) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)

    assert "hung up" in caplog.text
