"""Connections to Redis or Valkey that are kept open, each sure which server it talks to.

A hit's cost is the client's: redis-py's pool, retries and options take longer than the server. So
a link is redis-py's own connection, used directly, by one caller at a time.
"""

import logging
import os
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar
from weakref import WeakSet

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from datapatterns.cache_aside.breaker import Breaker
from datapatterns.cache_aside.lua_scripts import SCRIPTS, Command
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.errors import SettingsError
from datapatterns.urls import checked_redis_url

T = TypeVar("T")

logger = logging.getLogger(__name__)

_IDLE_MAX = 64
UNREACHABLE = (RedisConnectionError, RedisTimeoutError, InvalidResponse, OSError)
_OF_ANOTHER_POOL = ("event_dispatcher", "himport_registry", "maint_notifications", "orig_")
WHO_ARE_YOU: Sequence[Command] = (("INFO", "server"), ("INFO", "replication"))
_FIELD = re.compile(r"^(run_id|master_replid|redis_mode):([^\r\n]*)", re.MULTILINE)


class Link:
    """One open connection; whoever took it is alone with it."""

    __slots__ = ("connection", "identity", "is_used", "pack", "receive", "send")

    def __init__(self, pool: ConnectionPool) -> None:
        self.connection = pool.connection_class(**pool.connection_kwargs)
        self.connection.connect()
        self.pack = self.connection.pack_command
        self.send = self.connection.send_packed_command
        self.receive = self.connection.read_response
        self.is_used = False
        self.identity = self.current_identity()

    def call(self, command: Command) -> object:
        """Send one command and return its reply; a script that the server misses goes along."""
        try:
            return self._call(command)
        except NoScriptError:
            _, sha, *rest = command
            return self._call(("EVAL", SCRIPTS[str(sha)].source, *rest))

    def current_identity(self) -> str:
        """Return which run of which server answers, as it says now.

        A restart draws another run id, a failover another replication id: after either, values
        may be back that had been deleted.

        Raises:
            SettingsError: It is a node of a cluster.
        """
        self.identity = identity_in([self._call(command) for command in WHO_ARE_YOU])
        return self.identity

    def close(self) -> None:
        """Let go of the server."""
        self.connection.disconnect()

    def _call(self, command: Command) -> object:
        self.send(self.pack(*command), check_health=False)
        reply: object = self.receive(disable_decoding=True)
        return reply


def identity_in(replies: Sequence[object]) -> str:
    """Return which run of which server gave these replies to `WHO_ARE_YOU`.

    Raises:
        SettingsError: It is a node of a cluster.
    """
    text = b"".join(reply for reply in replies if isinstance(reply, bytes))
    found = dict(_FIELD.findall(text.decode(errors="replace")))
    if found.get("redis_mode") == "cluster":
        raise SettingsError("redis", "a Redis Cluster is not supported yet; name one server")
    return f"{found.get('run_id')}:{found.get('master_replid')}"


def _pool_of(url: str) -> ConnectionPool:
    checked = checked_redis_url(url, "redis")
    try:
        pool = ConnectionPool.from_url(checked)
        pool.connection_class(**pool.connection_kwargs)  # does not connect
    except (TypeError, ValueError):
        # What they say may quote the password.
        raise SettingsError(
            "redis", "this is no URL of a Redis; write redis://user:password@host:6379/0"
        ) from None
    return pool


class Links:
    """Hands out links, and reports silence to whoever must know.

    Args:
        redis: A URL, or a client whose settings are used.
        timeout_seconds: How long to wait for a connection or an answer.
        breaker: What decides whether to ask at all.
        on_silence: Called whenever the server did not answer, or another one did.

    Attributes:
        database: The number of the database within the server.

    Raises:
        SettingsError: The URL cannot be used.
    """

    def __init__(
        self,
        redis: str | Redis,
        *,
        timeout_seconds: float,
        breaker: Breaker,
        on_silence: Callable[[], None],
    ) -> None:
        pool = _pool_of(redis) if isinstance(redis, str) else redis.connection_pool
        self._source = pool  # settings of a sentinel's client refer to it weakly
        settings = {
            name: value
            for name, value in pool.connection_kwargs.items()
            if not name.startswith(_OF_ANOTHER_POOL)
        }
        self._pool = ConnectionPool(
            connection_class=pool.connection_class,
            **settings
            | {
                "protocol": 2,  # no pushes that could come between a command and its reply
                "decode_responses": False,
                "socket_timeout": timeout_seconds,
                "socket_connect_timeout": timeout_seconds,
                "retry": Retry(NoBackoff(), 0),
                "health_check_interval": 0,
            },
        )
        self.database = int(settings.get("db") or 0)
        # Many threads can push to a list and pop from it without a lock of ours.
        self._idle: list[Link] = []
        self._breaker = breaker
        self._on_silence = on_silence
        _instances.add(self)

    def fetch(self, command: Command, identity: str) -> object:
        """Return the reply to a command that reads, by the shortest way there is.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        if not self._idle or self._breaker.is_open:
            return self.call(command, identity=identity)
        try:
            link = self._idle.pop()
        except IndexError:  # another thread was quicker
            return self.call(command, identity=identity)
        if link.identity != identity:
            link.close()
            return self.call(command, identity=identity)
        try:
            link.send(link.pack(*command), False)
            reply: object = link.receive(disable_decoding=True)
        except RedisConnectionError:
            link.close()
            return self.call(command, identity=identity)
        except BaseException as error:
            link.close()
            if isinstance(error, UNREACHABLE):
                raise self.silence(error) from error
            if isinstance(error, ResponseError):
                raise CacheSilence(str(error)) from error
            raise
        self._idle.append(link)
        return reply

    def call(self, command: Command, *, identity: str | None = None) -> object:
        """Return the reply to one command.

        Args:
            command: The command.
            identity: The server that it is meant for; None for whichever answers.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        [reply] = self.call_all([command], identity=identity)
        return reply

    def call_all(self, commands: Sequence[Command], *, identity: str | None = None) -> list[object]:
        """Return the replies to ``commands``, sent one after the other on one link.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """

        def send(link: Link) -> list[object]:
            if identity not in {None, link.identity}:
                raise RedisConnectionError("another server answers")
            return [link.call(command) for command in commands]

        return self._with_link(send)

    def current_identity(self) -> str:
        """Return which run of which server answers now.

        Raises:
            CacheSilence: There was no answer.
        """
        return self._with_link(Link.current_identity)

    @property
    def where(self) -> Hashable:
        """Return what is equal for all links to one server, as far as their settings tell."""
        settings = self._pool.connection_kwargs
        names = ("path",) if settings.get("path") else ("host", "port")
        if not settings.get(names[0]):
            return id(self)
        return self._pool.connection_class, *(
            settings.get(name) for name in (*names, "username", "password")
        )

    def opener_for_pushes(self) -> Callable[[], Any]:
        """Return what opens a connection on which the server may speak unasked.

        It raises what redis-py does. It knows nothing of these links, nor of who uses them.
        """
        pool, source = self._pool, self._source

        def connect() -> Any:  # noqa: ANN401 -- a connection of redis-py, which is untyped
            assert source is not None  # kept for the settings that refer to it
            connection = pool.connection_class(**pool.connection_kwargs | {"protocol": 3})
            connection.connect()
            return connection

        return connect

    def close(self) -> None:
        """Close the links that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def leave_to_parent(self) -> None:
        """Forget links that this process inherited: their replies are another's."""
        self._idle = []

    def _with_link(self, use: Callable[[Link], T]) -> T:
        if not self._breaker.allows():
            raise CacheSilence("left alone after failures")
        try:
            link = self._idle.pop() if self._idle else Link(self._pool)
            try:
                return self._use(link, use)
            except RedisConnectionError:
                if not link.is_used:
                    raise
            # The server had closed an idle link: that says nothing about how it is now.
            return self._use(Link(self._pool), use)
        except UNREACHABLE as error:
            raise self.silence(error) from error
        except ResponseError as error:
            raise CacheSilence(str(error)) from error

    def _use(self, link: Link, use: Callable[[Link], T]) -> T:
        try:
            result = use(link)
        except BaseException:
            # After a failure nobody knows whose reply comes next.
            link.close()
            raise
        self._breaker.succeeded()
        link.is_used = True
        if len(self._idle) < _IDLE_MAX:
            self._idle.append(link)
        else:
            link.close()
        return result

    def silence(self, error: Exception) -> CacheSilence:
        """Take note that the server did not answer, and return what to raise."""
        was_open = self._breaker.is_open
        self._breaker.failed()
        self._on_silence()
        if self._breaker.is_open and not was_open:
            logger.warning(
                "Redis does not answer; values come from the database",
                extra={"error": type(error).__name__},
            )
        return CacheSilence(f"{type(error).__name__}: {error}")


_instances: WeakSet[Links] = WeakSet()


def _leave_all_to_parent() -> None:
    for links in _instances:
        links.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)
