"""Connections to Redis or Valkey for asyncio; what `Links` is for threads."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from redis.asyncio import ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from datapatterns.cache_aside.link import UNREACHABLE, WHO_ARE_YOU, Refused, identity_in
from datapatterns.cache_aside.links import Links
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

    async def open(self, *, in_cluster: bool) -> None:
        """Connect, and learn who answers."""
        await self.connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
        self.identity = identity_in(await self.call_all(WHO_ARE_YOU), in_cluster=in_cluster)

    async def call(self, command: Command) -> object:
        """Send one command and return its reply; a script that the server misses goes along."""
        try:
            return await self._call(command)
        except NoScriptError:
            return await self._call(_in_full(command))

    async def call_all(self, commands: Sequence[Command]) -> list[object]:
        """Send commands one after the other, and return their replies, errors among them."""
        packed = self.connection.pack_commands(commands)
        await self.connection.send_packed_command(packed, check_health=False)
        replies = [await self._received() for _ in commands]
        for place, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                replies[place] = await self._call(_in_full(commands[place]))
        return replies

    async def close(self) -> None:
        """Let go of the server, without waiting for it."""
        await self.connection.disconnect(nowait=True)

    async def _call(self, command: Command) -> object:
        packed = self.connection.pack_command(*command)
        await self.connection.send_packed_command(packed, check_health=False)
        reply: object = await self.connection.read_response(disable_decoding=True)
        return reply

    async def _received(self) -> object:
        try:
            reply: object = await self.connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return error
        return reply


class AsyncLinks:
    """Hands out links of one event loop.

    Args:
        source: A pool whose settings are used.
        reports_to: The sync links to the same server: whose breaker decides whether to ask at
            all, and who is told of silence.
        in_cluster: Whether it is a node of a cluster.
    """

    def __init__(
        self, source: ConnectionPool, *, reports_to: Links, in_cluster: bool = False
    ) -> None:
        self._pool = source
        self._idle: list[AsyncLink] = []
        self._breaker = reports_to.breaker
        self._reports_to = reports_to
        self._in_cluster = in_cluster

    def call(self, command: Command, *, identity: str) -> Awaitable[object]:
        """Return the reply to one command, meant for one server.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        return self._on_a_link(identity, lambda link: link.call(command))

    def call_all(self, commands: Sequence[Command], *, identity: str) -> Awaitable[list[object]]:
        """Return the replies to ``commands``; an error that the server answered with is one.

        Raises:
            CacheSilence: There was no answer, or it is another server.
        """
        return self._on_a_link(identity, lambda link: link.call_all(commands))

    async def close(self) -> None:
        """Close the links that nobody uses."""
        while self._idle:
            await self._idle.pop().close()
        if isinstance(self._pool, SentinelConnectionPool):
            await self._pool.sentinel_manager.aclose()

    async def _on_a_link(self, identity: str, act: Callable[[AsyncLink], Awaitable[T]]) -> T:
        if not self._breaker.allows():
            raise CacheSilence("left alone after failures")
        try:
            link = self._idle.pop() if self._idle else await self._open()
            try:
                return await self._use(link, act, identity)
            except RedisConnectionError:
                if not link.is_used:
                    raise
            # The server had closed an idle link: that says nothing about how it is now.
            return await self._use(await self._open(), act, identity)
        except UNREACHABLE as error:
            raise self._reports_to.silence(error) from error
        except ResponseError as error:
            raise Refused(error) from error

    async def _open(self) -> AsyncLink:
        link = AsyncLink(self._pool)
        await _or_close(link, link.open(in_cluster=self._in_cluster))
        return link

    async def _use(
        self, link: AsyncLink, act: Callable[[AsyncLink], Awaitable[T]], identity: str
    ) -> T:
        if link.identity != identity:
            await link.close()
            raise RedisConnectionError("another server answers now")
        result = await _or_close(link, act(link))
        self._breaker.succeeded()
        link.is_used = True
        if len(self._idle) < _IDLE_MAX:
            self._idle.append(link)
        else:
            await link.close()
        return result


async def _or_close(link: AsyncLink, act: Awaitable[T]) -> T:
    try:
        return await act
    except BaseException:
        # After a failure or a cancellation nobody knows whose reply comes next.
        await link.close()
        raise


def _in_full(command: Command) -> Command:
    _, sha, *rest = command
    return ("EVAL", SCRIPTS[str(sha)].source, *rest)
