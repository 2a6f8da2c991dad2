"""Connections to Redis or Valkey for asyncio; what `Links` is for threads."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from redis.asyncio import ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from datapatterns.cache_aside.link import UNREACHABLE, WHO_ARE_YOU, Refused, identity_in
from datapatterns.cache_aside.links import Links
from datapatterns.cache_aside.lua_scripts import Command
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.cache_aside.wire import Wire, open_wire

T = TypeVar("T")

_READING = frozenset({"GET", "MGET"})


class _Lane:
    """A connection that is opened when it is needed, for all who need it then."""

    def __init__(self, pool: ConnectionPool, *, in_cluster: bool) -> None:
        self._pool = pool
        self._in_cluster = in_cluster
        self._wire: Wire | None = None
        self._opening: asyncio.Task[Wire] | None = None

    @property
    def wire(self) -> Wire | None:
        """The connection, if it is open."""
        wire = self._wire
        return None if wire is None or wire.is_lost else wire

    async def connected(self) -> Wire:
        """Return the connection; it may have been opened for others."""
        while (wire := self.wire) is None:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
                self._opening.add_done_callback(self._opened)
            # A task of its own: who is cancelled leaves it to the others.
            await asyncio.shield(self._opening)
        return wire

    async def close(self) -> None:
        """Close the connection; who waits is told that it is gone."""
        if (opening := self._opening) is not None:
            opening.cancel()
            await asyncio.wait({opening})
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    async def _open(self) -> Wire:
        wire = await open_wire(self._pool)
        try:
            replies = await wire.call_all(WHO_ARE_YOU)
            wire.identity = identity_in(replies, in_cluster=self._in_cluster)
        except BaseException as error:
            wire.lose(error)
            raise
        return wire

    def _opened(self, opening: "asyncio.Task[Wire]") -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._wire = opening.result()


class AsyncLinks:
    """Two connections for all tasks of an event loop: hits do not wait behind what stores.

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
        self._reads = _Lane(source, in_cluster=in_cluster)
        self._scripts = _Lane(source, in_cluster=in_cluster)
        self._breaker = reports_to.breaker
        self._reports_to = reports_to

    def call(self, command: Command, *, identity: str) -> Awaitable[object]:
        """Return the reply to one command, meant for one server.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        lane = self._reads if command[0] in _READING else self._scripts
        return self._on_a_wire(lane, identity, lambda wire: wire.call(command))

    def call_all(self, commands: Sequence[Command], *, identity: str) -> Awaitable[list[object]]:
        """Return the replies to ``commands``; an error that the server answered with is one.

        Raises:
            CacheSilence: There was no answer, or it is another server.
        """
        is_reading = all(command[0] in _READING for command in commands)
        lane = self._reads if is_reading else self._scripts
        return self._on_a_wire(lane, identity, lambda wire: wire.call_all(commands))

    async def close(self) -> None:
        """Close both connections; who waits is told that they are gone."""
        await self._reads.close()
        await self._scripts.close()
        if isinstance(self._pool, SentinelConnectionPool):
            await self._pool.sentinel_manager.aclose()

    async def _on_a_wire(
        self, lane: _Lane, identity: str, act: Callable[[Wire], Awaitable[T]]
    ) -> T:
        if not self._breaker.allows():
            raise CacheSilence("left alone after failures")
        try:
            wire = lane.wire or await lane.connected()
            try:
                return await self._use(wire, act, identity)
            except RedisConnectionError:
                if not wire.is_used:
                    raise
            # The server had closed an idle connection: that says nothing about how it is now.
            return await self._use(await lane.connected(), act, identity)
        except UNREACHABLE as error:
            raise self._reports_to.silence(error) from error
        except ResponseError as error:
            raise Refused(error) from error

    async def _use(self, wire: Wire, act: Callable[[Wire], Awaitable[T]], identity: str) -> T:
        if wire.identity != identity:
            wire.lose(RedisConnectionError("another server answers now"))
            raise RedisConnectionError("another server answers now")
        result = await act(wire)
        self._breaker.succeeded()
        wire.is_used = True
        return result
