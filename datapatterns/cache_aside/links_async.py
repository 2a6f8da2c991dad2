"""Connections to Redis or Valkey for asyncio; what `Links` is for threads."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from datapatterns.cache_aside.breaker import Breaker
from datapatterns.cache_aside.links import UNREACHABLE, WHO_ARE_YOU, Links, identity_in
from datapatterns.cache_aside.lua_scripts import SCRIPTS, Command
from datapatterns.cache_aside.steps import CacheSilence

T = TypeVar("T")

_IDLE_MAX = 64


class AsyncLink:
    """One open connection; whoever took it is alone with it."""

    __slots__ = ("connection", "identity", "is_used")

    def __init__(self, pool: ConnectionPool) -> None:
        self.connection = pool.connection_class(**pool.connection_kwargs)
        self.identity = ""
        self.is_used = False

    async def open(self) -> None:
        """Connect, and learn who answers."""
        await self.connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
        self.identity = identity_in([await self._call(command) for command in WHO_ARE_YOU])

    async def call(self, command: Command) -> object:
        """Send one command and return its reply; a script that the server misses goes along."""
        try:
            return await self._call(command)
        except NoScriptError:
            _, sha, *rest = command
            return await self._call(("EVAL", SCRIPTS[str(sha)].source, *rest))

    async def close(self) -> None:
        """Let go of the server, without waiting for it."""
        await self.connection.disconnect(nowait=True)

    async def _call(self, command: Command) -> object:
        packed = self.connection.pack_command(*command)
        await self.connection.send_packed_command(packed, check_health=False)
        reply: object = await self.connection.read_response(disable_decoding=True)
        return reply


class AsyncLinks:
    """Hands out links of one event loop.

    Args:
        url: Where the server is.
        timeout_seconds: How long to wait for a connection or an answer.
        breaker: What decides whether to ask at all; the sync links' own.
        reports_to: Who is told of silence.
    """

    def __init__(
        self, url: str, *, timeout_seconds: float, breaker: Breaker, reports_to: Links
    ) -> None:
        self._pool = ConnectionPool.from_url(
            url,
            protocol=2,
            decode_responses=False,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        self._idle: list[AsyncLink] = []
        self._breaker = breaker
        self._reports_to = reports_to

    async def call(self, command: Command, *, identity: str) -> object:
        """Return the reply to one command, meant for one server.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        if not self._breaker.allows():
            raise CacheSilence("left alone after failures")
        try:
            link = self._idle.pop() if self._idle else await self._open()
            try:
                return await self._use(link, command, identity)
            except RedisConnectionError:
                if not link.is_used:
                    raise
            # The server had closed an idle link: that says nothing about how it is now.
            return await self._use(await self._open(), command, identity)
        except UNREACHABLE as error:
            raise self._reports_to.silence(error) from error
        except ResponseError as error:
            raise CacheSilence(str(error)) from error

    async def close(self) -> None:
        """Close the links that nobody uses."""
        while self._idle:
            await self._idle.pop().close()

    async def _open(self) -> AsyncLink:
        link = AsyncLink(self._pool)
        await _or_close(link, link.open)
        return link

    async def _use(self, link: AsyncLink, command: Command, identity: str) -> object:
        if link.identity != identity:
            await link.close()
            raise RedisConnectionError("another server answers now")
        reply = await _or_close(link, lambda: link.call(command))
        self._breaker.succeeded()
        link.is_used = True
        if len(self._idle) < _IDLE_MAX:
            self._idle.append(link)
        else:
            await link.close()
        return reply


async def _or_close(link: AsyncLink, act: Callable[[], Awaitable[T]]) -> T:
    try:
        return await act()
    except BaseException:
        # After a failure or a cancellation nobody knows whose reply comes next.
        await link.close()
        raise
