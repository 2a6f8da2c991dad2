"""Redis connections that pass a gate before each command.

The gate is where packed commands are sent, beneath clients, pipelines, scripts and code that uses
connections of the pool directly. The handshake of a new connection passes it freely.
"""

# ruff: noqa: ANN401 -- what redis-py takes and returns

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import redis
import redis.asyncio as redis_async
import redis.asyncio.connection as async_connections
import redis.asyncio.retry as async_retry
import redis.connection as connections
from redis.backoff import NoBackoff
from redis.retry import Retry

from datapatterns.testing.interleaving.choosing import Fault, Gate
from datapatterns.testing.interleaving.redis_servers import RedisServer
from datapatterns.testing.interleaving.resp import Command, commands_of, label_of
from datapatterns.testing.interleaving.stage import Stage
from datapatterns.testing.interleaving.tasks import Task, in_flight

# As often as redis-py's own clients do, but at once: they wait for up to ten seconds.
_RETRIES = 3
# Their answers are messages, read whenever the application likes.
_UNANSWERED = frozenset(
    {b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE"}
)


class _GatedLink:
    """What both kinds of connection need; a class of them is made for each client.

    Attributes:
        dp_stage: Shared with the explorer's other connections.
        dp_server: Asked who is blocked.
        dp_client_id: What the server calls this connection, if it tells.
    """

    dp_stage: Stage
    dp_server: RedisServer
    dp_client_id: int | None = None
    dp_connecting = False
    dp_pending: Task | None = None
    dp_lost_replies = 0
    used_by: Task | None = None

    def backend(self) -> None:
        """Return nothing: nobody waits for locks in Redis."""

    def outlives(self, task: Task) -> bool:
        """Return whether no answer is outstanding."""
        return self.dp_pending is not task

    def lost(self) -> Exception:
        """Return the error of a broken connection."""
        return redis.ConnectionError("the connection is lost (a fault of the test)")

    def hang_up(self) -> None:
        """Close the socket."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Make whoever waits for an answer, in another thread, go on with an error."""
        raise NotImplementedError

    def dp_task(self) -> Task | None:
        return None if self.dp_connecting else self.dp_stage.current_task()

    def dp_leave(
        self, fault: Fault | None, label: str, task: Task, commands: list[Command]
    ) -> None:
        """Let a request go out, or not."""
        if fault is Fault.CRASH:
            task.die(label)
        task.uses(self)
        if fault is Fault.REQUEST_LOST:
            self.hang_up()
            raise self.lost()
        self.dp_lost_replies = len(commands) if fault is Fault.REPLY_LOST else 0
        if commands[0][0].upper() not in _UNANSWERED:
            task.asked += 1
            task.pending[self] = None
            self.dp_pending = task

    def dp_answered(self) -> None:
        task, self.dp_pending = self.dp_pending, None
        if task is not None:
            task.pending.pop(self, None)

    @contextmanager
    def dp_handshake(self) -> Iterator[None]:
        self.dp_connecting, before = True, self.dp_connecting
        try:
            with in_flight():
                yield
        finally:
            self.dp_connecting = before

    @contextmanager
    def dp_answering(self) -> Iterator[None]:
        """Tell the task when its answer is there, or when there will be none."""
        task = self.dp_pending
        try:
            yield
        except redis.RedisError as error:
            if task is not None:
                task.fail(error)
            raise
        finally:
            self.dp_answered()


class _Gated(_GatedLink):
    def connect_check_health(self, *args: Any, **kwargs: Any) -> Any:
        connection, is_new = cast("Any", super()), getattr(self, "_sock", None) is None
        with self.dp_handshake():
            result = connection.connect_check_health(*args, **kwargs)
            if is_new:
                connection.send_command("CLIENT", "ID", check_health=False)
                self.dp_client_id = connection.read_response()
        return result

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 -- redis-py's signature
        if (task := self.dp_task()) is not None:
            commands = commands_of(command)
            label = label_of(commands)
            self.dp_leave(task.arrive(Gate(task.name, label)), label, task, commands)
        try:
            cast("Any", super()).send_packed_command(command, check_health=check_health)
        except BaseException:
            self.dp_answered()
            raise

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        connection = cast("Any", super())
        with self.dp_answering():
            if not self.dp_lost_replies:
                return connection.read_response(*args, **kwargs)
            for _ in range(self.dp_lost_replies):
                with suppress(redis.ResponseError):  # an error is a reply, and lost like one
                    connection.read_response(*args, **kwargs)
            self.hang_up()
            raise self.lost()

    def hang_up(self) -> None:
        self.dp_lost_replies = 0
        cast("Any", self).disconnect()
        self.dp_answered()

    def interrupt(self) -> None:
        if (sock := getattr(self, "_sock", None)) is not None:
            sock.shutdown(socket.SHUT_RDWR)


class _GatedAsync(_GatedLink):
    async def connect_check_health(self, *args: Any, **kwargs: Any) -> Any:
        connection, is_new = cast("Any", super()), not cast("Any", self).is_connected
        with self.dp_handshake():
            result = await connection.connect_check_health(*args, **kwargs)
            if is_new:
                await connection.send_command("CLIENT", "ID", check_health=False)
                self.dp_client_id = await connection.read_response()
        return result

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 -- redis-py's signature
        if (task := self.dp_task()) is not None:
            commands = commands_of(command)
            label = label_of(commands)
            fault = await task.arrive_async(Gate(task.name, label))
            self.dp_leave(fault, label, task, commands)
        try:
            await cast("Any", super()).send_packed_command(command, check_health=check_health)
        except BaseException:
            self.dp_answered()
            raise

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        connection = cast("Any", super())
        with self.dp_answering():
            if not self.dp_lost_replies:
                return await connection.read_response(*args, **kwargs)
            for _ in range(self.dp_lost_replies):
                with suppress(redis.ResponseError):  # an error is a reply, and lost like one
                    await connection.read_response(*args, **kwargs)
            self.hang_up()
            raise self.lost()

    def hang_up(self) -> None:
        self.dp_lost_replies = 0
        if (writer := getattr(self, "_writer", None)) is not None:
            writer.close()
            cast("Any", self)._reader = cast("Any", self)._writer = None  # noqa: SLF001 -- closing is a coroutine otherwise
        self.dp_answered()

    def interrupt(self) -> None:
        """Do nothing: cancelling its coroutine is enough."""


def gated_client(url: str, stage: Stage, server: RedisServer, **options: Any) -> redis.Redis:
    """Return an ordinary client whose connections are gated."""
    options.setdefault("retry", Retry(NoBackoff(), _RETRIES))
    single = options.pop("single_connection_client", False)
    pool = connections.ConnectionPool.from_url(url, **options)
    pool.connection_class = _gated(_Gated, pool.connection_class, stage, server)
    return redis.Redis(connection_pool=pool, single_connection_client=single)


def gated_async_client(
    url: str, stage: Stage, server: RedisServer, **options: Any
) -> redis_async.Redis:
    """Return an ordinary asynchronous client whose connections are gated."""
    options.setdefault("retry", async_retry.Retry(NoBackoff(), _RETRIES))
    single = options.pop("single_connection_client", False)
    pool = async_connections.ConnectionPool.from_url(url, **options)
    pool.connection_class = _gated(_GatedAsync, pool.connection_class, stage, server)
    return redis_async.Redis(connection_pool=pool, single_connection_client=single)


def blocked_in_redis(task: Task) -> bool:
    """Return whether a task waits in a blocking command."""
    for link in list(task.pending):
        if isinstance(link, _GatedLink) and link.dp_client_id is not None:
            return bool(link.dp_server.blocked([link.dp_client_id]))
    return False


def _gated(gates: Any, base: Any, stage: Stage, server: RedisServer) -> Any:
    return type(f"Gated{base.__name__}", (gates, base), {"dp_stage": stage, "dp_server": server})
