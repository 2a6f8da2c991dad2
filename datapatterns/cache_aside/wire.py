"""One connection for all tasks of an event loop: they ask together and are answered in order.

A task that waits for its own connection's reply costs the loop a stream, a lock and several turns.
Here what is asked in one turn is sent in one piece, and a reply wakes exactly who waits for it.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from redis._parsers.base import BaseParser
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from datapatterns.cache_aside.lua_scripts import SCRIPTS, Command
from datapatterns.cache_aside.resp2 import NOT_ENOUGH, PlainReader

try:
    from hiredis import Reader
except ImportError:  # the extra "fast"
    has_hiredis = False
else:
    has_hiredis = True


class ReplyReader(Protocol):
    """Takes bytes as they come, and returns replies when they are whole."""

    def feed(self, data: bytes, /) -> object:
        """Take more bytes."""
        ...

    def gets(self) -> object:
        """Return the next reply, or `NOT_ENOUGH`; an error of the server's is an exception."""
        ...


def reply_reader() -> ReplyReader:
    """Return the fastest reader that there is."""
    if not has_hiredis:
        return PlainReader(BaseParser.parse_error)
    return Reader(
        protocolError=InvalidResponse,
        replyError=BaseParser.parse_error,
        notEnoughData=NOT_ENOUGH,
    )


class Wire(asyncio.Protocol):
    """A connection that many tasks use at once.

    Whoever is cancelled leaves his reply to nobody: it is read and dropped in its turn.

    Args:
        connection: Of redis-py, open and idle: it knows how to connect, by TLS and with passwords.
        timeout_seconds: How long the server may be silent while somebody waits.

    Attributes:
        identity: Which server this is; whoever opens it finds out.
        is_used: Whether it has been of use.
        is_lost: Whether it can be used no more.
    """

    def __init__(self, connection: Any, *, timeout_seconds: float) -> None:  # noqa: ANN401
        self.identity = ""
        self.is_used = False
        self.is_lost = False
        self._pack = connection.pack_command
        self._timeout_seconds = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._reader = reply_reader()
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._waiting_since = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._has_closed = asyncio.Event()
        # Taken over from the connection, which must not close what it has no more.
        self._writer = connection._writer  # noqa: SLF001 -- there is no other way
        connection._reader = connection._writer = None  # noqa: SLF001
        self._transport: asyncio.Transport = self._writer.transport
        self._transport.set_protocol(self)

    async def call(self, command: Command) -> object:
        """Return the reply to one command; a script that the server misses goes along.

        Raises:
            redis.exceptions.RedisError: The server answered with an error, was silent, or is gone.
        """
        reply = await self._ask(command)
        if isinstance(reply, NoScriptError):
            reply = await self._ask(in_full(command))
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def call_all(self, commands: Sequence[Command]) -> list[object]:
        """Return the replies to ``commands``; an error that the server answered with is one.

        Raises:
            redis.exceptions.RedisError: The server was silent, or is gone.
        """
        waiting = [self._ask(command) for command in commands]
        replies = [await each for each in waiting]
        for place, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                replies[place] = await self._ask(in_full(commands[place]))
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, ResponseError):
                raise reply
        return replies

    async def close(self) -> None:
        """Let go of the server; who waits is told that it is gone."""
        self.lose(RedisConnectionError("closed"))
        await self._has_closed.wait()

    def lose(self, error: BaseException) -> None:
        """Use it no more, and tell all who wait why."""
        # As results, for an exception that nobody comes for is reported by the loop.
        self.is_lost = True
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._transport.abort()
        pending, self._pending = self._pending, deque()
        for future in pending:
            if not future.done():
                future.set_result(error)

    def _ask(self, command: Command) -> "asyncio.Future[Any]":
        if self.is_lost:
            raise RedisConnectionError("gone")
        packed = self._pack(*command)
        future = self._loop.create_future()
        if self._pending:
            # Others wait already: what is asked in this turn goes in one piece.
            if not self._unsent:
                self._loop.call_soon(self._send)
            self._unsent += packed
        else:
            self._waiting_since = self._loop.time()
            self._transport.writelines(packed)
            if self._alarm is None:
                self._set_alarm()
        self._pending.append(future)
        return future

    def _send(self) -> None:
        packed, self._unsent = self._unsent, []
        if not self.is_lost:
            self._transport.writelines(packed)

    def data_received(self, data: bytes) -> None:
        """Give replies to those who wait for them."""
        self._reader.feed(data)
        self._waiting_since = self._loop.time()
        pending, gets = self._pending, self._reader.gets
        try:
            while (reply := gets()) is not NOT_ENOUGH:
                future = pending.popleft()
                if not future.done():  # else its task has been cancelled
                    future.set_result(reply)
        except (InvalidResponse, IndexError) as error:
            self.lose(InvalidResponse(f"not what Redis says: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        """Tell all who wait."""
        self.lose(RedisConnectionError(f"the server has closed the connection: {error}"))
        self._has_closed.set()

    def _set_alarm(self) -> None:
        at = self._waiting_since + self._timeout_seconds
        self._alarm = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if not self._pending:
            return
        if self._loop.time() - self._waiting_since >= self._timeout_seconds:
            self.lose(RedisTimeoutError("silent"))
        else:
            self._set_alarm()


def in_full(command: Command) -> Command:
    """Return what sends the script itself, which ``command`` calls by its hash."""
    _, sha, *rest = command
    return ("EVAL", SCRIPTS[str(sha)].source, *rest)


async def open_wire(pool: ConnectionPool) -> Wire:
    """Return an open wire with the settings of ``pool``.

    Raises:
        redis.exceptions.RedisError: The server cannot be reached.
    """
    connection = pool.connection_class(**pool.connection_kwargs)
    try:
        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
        return Wire(connection, timeout_seconds=pool.connection_kwargs["socket_timeout"])
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
