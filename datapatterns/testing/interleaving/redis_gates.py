"""Redis connections that pass a gate before each command.

The gate is where packed commands are sent, beneath clients, pipelines, scripts and code that uses
connections of the pool directly. The handshake of a new connection passes it freely.
"""

# ruff: noqa: ANN401 -- what drivers, and the functions of users, take and return

from collections.abc import Iterable
from typing import Any, cast

import redis
import redis.asyncio as redis_async
import redis.asyncio.connection as async_connections
import redis.connection as connections

from datapatterns.testing.interleaving.choosing import Fault, Gate
from datapatterns.testing.interleaving.tasks import CURRENT, Task, TaskCrashed, in_flight

_ARGUMENTS_SHOWN = 2
_ARGUMENT_CHARACTERS_MAX = 40
_LABEL_CHARACTERS_MAX = 200
_LINE_END = b"\r\n"


class _GatedLink:
    used_by: Task | None = None
    dp_connecting = False
    dp_pending: Task | None = None
    dp_reply_lost = 0

    def lost(self) -> Exception:
        """Return the error of a broken connection."""
        return redis.ConnectionError("the connection is lost (a fault of the test)")

    def _answered(self) -> None:
        task, self.dp_pending = self.dp_pending, None
        if task is not None:
            task.in_flight -= 1

    def _leaves(self, fault: Fault | None, label: str, task: Task, commands: int) -> None:
        if fault is Fault.CRASH:
            raise TaskCrashed(label)
        task.uses(self)
        if fault is Fault.REQUEST_LOST:
            self.hang_up()
            raise self.lost()
        self.dp_reply_lost = commands if fault is Fault.REPLY_LOST else 0
        task.in_flight += 1
        self.dp_pending = task

    def backend(self) -> None:
        """Return nothing: nobody waits for locks in Redis."""

    def in_transaction(self) -> bool:
        """Return nothing: a transaction of Redis holds no locks."""
        return False

    def hang_up(self) -> None:
        """Close the socket."""
        raise NotImplementedError


class _Gated(_GatedLink):
    def connect_check_health(self, *args: Any, **kwargs: Any) -> Any:
        self.dp_connecting = True
        try:
            with in_flight():
                return cast("Any", super()).connect_check_health(*args, **kwargs)
        finally:
            self.dp_connecting = False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 -- redis-py's signature
        task = None if self.dp_connecting else CURRENT.get()
        if task is not None:
            commands = _commands(command)
            label = _label(commands)
            self._leaves(task.arrive(Gate(task.name, label)), label, task, len(commands))
        try:
            cast("Any", super()).send_packed_command(command, check_health=check_health)
        except BaseException:
            self._answered()
            raise

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            response = cast("Any", super()).read_response(*args, **kwargs)
        finally:
            self._answered()
        if self.dp_reply_lost:
            for _ in range(self.dp_reply_lost - 1):
                cast("Any", super()).read_response(*args, **kwargs)
            self.hang_up()
            raise self.lost()
        return response

    def hang_up(self) -> None:
        self.dp_reply_lost = 0
        cast("Any", self).disconnect()


class _GatedAsync(_GatedLink):
    async def connect_check_health(self, *args: Any, **kwargs: Any) -> Any:
        self.dp_connecting = True
        try:
            with in_flight():
                return await cast("Any", super()).connect_check_health(*args, **kwargs)
        finally:
            self.dp_connecting = False

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 -- redis-py's signature
        task = None if self.dp_connecting else CURRENT.get()
        if task is not None:
            commands = _commands(command)
            label = _label(commands)
            fault = await task.arrive_async(Gate(task.name, label))
            self._leaves(fault, label, task, len(commands))
        try:
            await cast("Any", super()).send_packed_command(command, check_health=check_health)
        except BaseException:
            self._answered()
            raise

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            response = await cast("Any", super()).read_response(*args, **kwargs)
        finally:
            self._answered()
        if self.dp_reply_lost:
            for _ in range(self.dp_reply_lost - 1):
                await cast("Any", super()).read_response(*args, **kwargs)
            self.hang_up()
            raise self.lost()
        return response

    def hang_up(self) -> None:
        self.dp_reply_lost = 0
        writer, reader = getattr(self, "_writer", None), getattr(self, "_reader", None)
        if writer is not None:
            writer.close()
        if reader is not None:
            cast("Any", self)._reader = cast("Any", self)._writer = None  # noqa: SLF001 -- closing is a coroutine otherwise


def gated_client(url: str, **options: Any) -> redis.Redis:
    """Return an ordinary client whose connections are gated."""
    pool = connections.ConnectionPool.from_url(url, **options)
    pool.connection_class = _gated(pool.connection_class)
    return redis.Redis(connection_pool=pool)


def gated_async_client(url: str, **options: Any) -> redis_async.Redis:
    """Return an ordinary asynchronous client whose connections are gated."""
    pool = async_connections.ConnectionPool.from_url(url, **options)
    pool.connection_class = _gated(pool.connection_class, _GatedAsync)
    return redis_async.Redis(connection_pool=pool)


def _gated(base: Any, gates: Any = _Gated) -> Any:
    return type(f"Gated{base.__name__}", (gates, base), {})


def _commands(packed: bytes | str | Iterable[bytes]) -> list[list[bytes]]:
    """Read packed commands back: each is a RESP array of bulk strings."""
    if isinstance(packed, str):
        packed = packed.encode()
    data = packed if isinstance(packed, bytes) else b"".join(packed)
    found, at = [], 0
    while at < len(data):
        size, at = _number(data, at)
        arguments = []
        for _ in range(size):
            length, at = _number(data, at)
            arguments.append(data[at : at + length])
            at += length + len(_LINE_END)
        found.append(arguments)
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    end = data.index(_LINE_END, at)
    return int(data[at + 1 : end]), end + len(_LINE_END)


def _label(commands: list[list[bytes]]) -> str:
    names = [command[0].decode(errors="replace") for command in commands]
    if len(commands) > 1:
        return f"redis {' '.join(names)}"[:_LABEL_CHARACTERS_MAX]
    shown = [part.decode(errors="replace") for part in commands[0][:_ARGUMENTS_SHOWN]]
    return "redis " + " ".join(part[:_ARGUMENT_CHARACTERS_MAX] for part in shown)
