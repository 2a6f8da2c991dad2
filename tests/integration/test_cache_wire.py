"""One connection for many tasks: each gets its own reply, whatever happens to the others."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from datapatterns.breaker import Breaker
from datapatterns.cache_aside import wire
from datapatterns.cache_aside.links import Links
from datapatterns.cache_aside.links_async import AsyncLinks
from datapatterns.cache_aside.lua_scripts import RELEASE
from datapatterns.cache_aside.redis_sources import one_server
from datapatterns.cache_aside.redis_sources_async import async_pool_of
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.cache_aside.wire import Wire, open_wire
from tests.fixtures.caches import ENOUGH_SECONDS

pytestmark = pytest.mark.redis


@pytest.fixture(params=[True, False], ids=["hiredis", "plain"])
def _with_hiredis(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "has_hiredis", request.param)


@pytest.fixture
def redis(redis_url: str, redis_client: Redis) -> str:
    for number in range(100):
        redis_client.set(f"n{number}", number)
    return redis_url


@asynccontextmanager
async def opened(url: str, timeout_seconds: float = ENOUGH_SECONDS) -> AsyncIterator[Wire]:
    a_wire = await open_wire(async_pool_of(url, timeout_seconds=timeout_seconds))
    yield a_wire
    await a_wire.close()


@pytest.mark.usefixtures("_with_hiredis")
def test_each_task_gets_its_own_reply(redis: str) -> None:
    async def read(a_wire: Wire, number: int) -> None:
        for turn in range(20):
            wanted = (number + turn) % 100
            assert await a_wire.call(("GET", f"n{wanted}")) == b"%d" % wanted
            assert await a_wire.call_all([("GET", "none"), ("GET", f"n{number}")]) == [
                None,
                b"%d" % number,
            ]

    async def scenario() -> None:
        async with opened(redis) as a_wire:
            await asyncio.gather(*(read(a_wire, number) for number in range(100)))

    asyncio.run(scenario())


@pytest.mark.usefixtures("_with_hiredis")
def test_large_values_and_errors_come_in_order(redis: str, redis_client: Redis) -> None:
    redis_client.set("large", b"x" * 3_000_000)

    async def scenario() -> None:
        async with opened(redis) as a_wire:
            large, wrong, small = await asyncio.gather(
                a_wire.call(("GET", "large")),
                a_wire.call(("HGET", "large", "field")),
                a_wire.call(("GET", "n1")),
                return_exceptions=True,
            )
            assert large == b"x" * 3_000_000
            assert isinstance(wrong, ResponseError)
            assert small == b"1"

    asyncio.run(scenario())


def test_a_cancelled_task_leaves_its_reply_to_nobody(redis: str) -> None:
    async def scenario() -> None:
        async with opened(redis) as a_wire:
            asked = [asyncio.create_task(read(a_wire, number)) for number in range(20)]
            await asyncio.sleep(0)
            for task in asked[::2]:
                task.cancel()
            done = await asyncio.gather(*asked, return_exceptions=True)

            assert done[1::2] == [b"%d" % number for number in range(1, 20, 2)]
            assert all(isinstance(each, asyncio.CancelledError) for each in done[::2])
            assert await read(a_wire, 50) == b"50"

    asyncio.run(scenario())


async def read(a_wire: Wire, number: int) -> object:
    return await a_wire.call(("GET", f"n{number}"))


def test_a_script_that_the_server_misses_is_sent_in_full(redis: str, redis_client: Redis) -> None:
    redis_client.script_flush()

    async def scenario() -> None:
        async with opened(redis) as a_wire:
            command = RELEASE.by_hash(["lease"], ["token"])
            assert await a_wire.call(command) == 0
            redis_client.script_flush()
            assert await a_wire.call_all([command, ("GET", "n1")]) == [0, b"1"]
            with pytest.raises(ResponseError):
                await a_wire.call(("EVAL", "this is no Lua", 0))

    asyncio.run(scenario())


Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server_that(answers: Answering) -> AsyncIterator[Wire]:
    """Give a wire to a server that says what it likes."""
    serving: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.append(task)
        await answers(reader, writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        settings: dict[str, Any] = {"driver_info": None}  # to connect in silence
        pool = ConnectionPool(host=host, port=port, protocol=2, socket_timeout=0.05, **settings)
        a_wire = await open_wire(pool)
        yield a_wire
        await a_wire.close()
        await asyncio.wait(serving)


def test_who_waits_is_told_when_the_server_goes(redis: str) -> None:
    assert redis

    async def go(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"n1\r\n")

    async def scenario() -> None:
        async with server_that(go) as a_wire:
            found = await asyncio.gather(
                *(read(a_wire, 1) for _ in range(3)), return_exceptions=True
            )
            assert all(isinstance(each, RedisConnectionError) for each in found)
            with pytest.raises(RedisConnectionError):
                await read(a_wire, 1)

    asyncio.run(scenario())


def test_who_waits_for_a_silent_server_is_told_so() -> None:
    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scenario() -> None:
        async with server_that(say_nothing) as a_wire:
            with pytest.raises(RedisTimeoutError):
                await read(a_wire, 1)
            assert a_wire.is_lost

    asyncio.run(scenario())


def test_what_is_no_reply_ends_the_connection() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"n1\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async def scenario() -> None:
        async with server_that(babble) as a_wire:
            with pytest.raises(InvalidResponse):
                await read(a_wire, 1)

    asyncio.run(scenario())


def links_to(url: str) -> tuple[AsyncLinks, str]:
    reports_to = Links(
        one_server(url, timeout_seconds=ENOUGH_SECONDS),
        timeout_seconds=ENOUGH_SECONDS,
        breaker=Breaker(lambda: 0.0),
        on_silence=lambda: None,
    )
    identity = reports_to.current_identity()
    reports_to.close()
    pool = async_pool_of(url, timeout_seconds=ENOUGH_SECONDS)
    return AsyncLinks(pool, reports_to=reports_to), identity


def test_an_idle_connection_that_was_closed_is_replaced_once_for_all(
    redis: str, redis_client: Redis
) -> None:
    async def scenario() -> None:
        links, identity = links_to(redis)
        assert await links.call(("GET", "n1"), identity=identity) == b"1"
        before = redis_client.info("stats")["total_connections_received"]
        redis_client.client_kill_filter(_type="normal", skipme=True)
        replies = await asyncio.gather(
            *(links.call(("GET", f"n{number}"), identity=identity) for number in range(50))
        )

        assert replies == [b"%d" % number for number in range(50)]
        assert redis_client.info("stats")["total_connections_received"] == before + 1
        await links.close()

    asyncio.run(scenario())


def test_another_server_is_not_asked(redis: str) -> None:
    async def scenario() -> None:
        links, identity = links_to(redis)
        with pytest.raises(CacheSilence):
            await links.call(("GET", "n1"), identity="another")
        assert await links.call(("GET", "n1"), identity=identity) == b"1"
        await links.close()

    asyncio.run(scenario())


def test_a_cancelled_caller_leaves_the_opening_to_the_others(redis: str) -> None:
    async def scenario() -> None:
        links, identity = links_to(redis)
        first, second = (
            asyncio.ensure_future(links.call(("GET", f"n{number}"), identity=identity))
            for number in (1, 2)
        )
        await asyncio.sleep(0)
        first.cancel()
        assert await second == b"2"
        assert (await asyncio.gather(first, return_exceptions=True))[0] is not None
        await links.close()

    asyncio.run(scenario())


def test_a_connection_that_is_being_opened_can_be_closed(redis: str) -> None:
    async def scenario() -> None:
        links, identity = links_to(redis)
        asking = asyncio.ensure_future(links.call(("GET", "n1"), identity=identity))
        await asyncio.sleep(0)
        await links.close()
        assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], BaseException)

    asyncio.run(scenario())
