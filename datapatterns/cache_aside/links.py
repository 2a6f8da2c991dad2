"""Connections to Redis or Valkey that are kept open, each sure which server it talks to.

A hit's cost is the client's: redis-py's pool, retries and options take longer than the server. So
a link is redis-py's own connection, used directly, by one caller at a time.
"""

import logging
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.retry import Retry

from datapatterns.breaker import Breaker
from datapatterns.cache_aside.link import (
    UNREACHABLE,
    WHO_ARE_YOU,
    Link,
    Refused,
    identity_in,
    without_errors,
)
from datapatterns.cache_aside.lua_scripts import Command
from datapatterns.cache_aside.steps import CacheSilence

logger = logging.getLogger(__name__)

_IDLE_MAX = 64
_OF_ANOTHER_POOL = ("event_dispatcher", "himport_registry", "maint_notifications", "orig_")


class Place(NamedTuple):
    """A server that hits come from.

    Attributes:
        identity: Which run of which server it is.
        tag: What a key ends in to be there.
        address: Where it is in a cluster.
    """

    identity: str
    tag: str = ""
    address: tuple[str, int] | None = None


class Links:
    """Hands out links, and reports silence to whoever must know.

    Args:
        source: A pool whose settings are used.
        timeout_seconds: How long to wait for a connection or an answer.
        breaker: What decides whether to ask at all.
        on_silence: Called whenever the server did not answer, or another one did.
        in_cluster: Whether it is a node of a cluster.

    Attributes:
        breaker: As given.
        database: The number of the database within the server.
        tells_losses: Whether it can be known what Redis has lost.
    """

    tells_losses = True

    def __init__(
        self,
        source: ConnectionPool,
        *,
        timeout_seconds: float,
        breaker: Breaker,
        on_silence: Callable[[], None],
        in_cluster: bool = False,
    ) -> None:
        self._source = source  # settings of a sentinel's client refer to it weakly
        settings = {
            name: value
            for name, value in source.connection_kwargs.items()
            if not name.startswith(_OF_ANOTHER_POOL)
        }
        self._pool = ConnectionPool(
            connection_class=source.connection_class,
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
        self.breaker = breaker
        self._on_silence = on_silence
        self._in_cluster = in_cluster
        _instances.add(self)

    def fetch(self, command: Command, identity: str) -> object:
        """Return the reply to a command that reads, by the shortest way there is.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        if not self._idle or self.breaker.is_open:
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
                raise Refused(error) from error
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
        return without_errors(self.begin(commands, identity=identity).replies())

    def begin(self, commands: Sequence[Command], *, identity: str | None = None) -> "Exchange":
        """Send ``commands`` and return where their replies are to be had, or given up.

        Raises:
            CacheSilence: There was no answer, or it is another server.
        """
        return Exchange(self, commands, identity)

    def current_identity(self) -> str:
        """Return which run of which server answers now.

        Raises:
            CacheSilence: There was no answer.
        """
        replies = self.call_all(WHO_ARE_YOU)
        return identity_in(replies, in_cluster=self._in_cluster)

    def places(self, identity: str) -> list[Place]:
        """Return the servers that ``identity`` stands for."""
        return [Place(identity)]

    def call_at(self, place: Place, commands: Sequence[Command]) -> list[object]:
        """Return the replies of one of these servers.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        return self.call_all(commands, identity=place.identity)

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

    @contextmanager
    def heeding_silence(self) -> Iterator[None]:
        """Take note if the server does not answer.

        Raises:
            CacheSilence: It did not, or with an error.
        """
        try:
            yield
        except UNREACHABLE as error:
            raise self.silence(error) from error
        except ResponseError as error:
            raise Refused(error) from error

    def take(self, *, anew: bool = False) -> Link:
        """Return a link that nobody else uses; ``anew`` none that was idle.

        Raises:
            CacheSilence: The server is left alone.
        """
        if not anew and not self.breaker.allows():
            raise CacheSilence("left alone after failures")
        if self._idle and not anew:
            try:
                return self._idle.pop()
            except IndexError:
                pass  # another thread was quicker
        return Link(self._pool, in_cluster=self._in_cluster)

    def give_back(self, link: Link) -> None:
        """Take back a link on which every reply has been read."""
        self.breaker.succeeded()
        link.is_used = True
        if len(self._idle) < _IDLE_MAX:
            self._idle.append(link)
        else:
            link.close()

    def silence(self, error: Exception) -> CacheSilence:
        """Take note that the server did not answer, and return what to raise."""
        was_open = self.breaker.is_open
        self.breaker.failed()
        self._on_silence()
        if self.breaker.is_open and not was_open:
            logger.warning(
                "Redis does not answer; values come from the database",
                extra={"error": type(error).__name__},
            )
        return CacheSilence(f"{type(error).__name__}: {error}")


class Exchange:
    """Commands that are on their way on a link of its own."""

    __slots__ = ("_commands", "_identity", "_link", "_links")

    def __init__(self, links: Links, commands: Sequence[Command], identity: str | None) -> None:
        self._links = links
        self._commands = commands
        self._identity = identity
        with links.heeding_silence():
            self._link = links.take()
            try:
                self._send()
            except RedisConnectionError as error:
                self._send_again(error)

    def replies(self) -> list[object]:
        """Return the replies in order; an error that the server answered with is one of them.

        Raises:
            CacheSilence: There was no answer, or it is another server.
        """
        with self._links.heeding_silence():
            try:
                replies = self._received()
            except RedisConnectionError as error:
                self._send_again(error)
                replies = self._received()
        self._links.give_back(self._link)
        return replies

    def give_up(self) -> None:
        """Let nobody else read what is on its way."""
        self._link.close()

    def _send_again(self, error: RedisConnectionError) -> None:
        if not self._link.is_used:
            raise error
        # The server had closed an idle link: that says nothing about how it is now.
        self._link = self._links.take(anew=True)
        self._send()

    def _send(self) -> None:
        with self._closing_after_failures():
            if self._identity not in {None, self._link.identity}:
                raise RedisConnectionError("another server answers")
            self._link.send_all(self._commands)

    def _received(self) -> list[object]:
        with self._closing_after_failures():
            return self._link.receive_all(self._commands)

    @contextmanager
    def _closing_after_failures(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # After a failure nobody knows whose reply comes next.
            self._link.close()
            raise


_instances: WeakSet[Links] = WeakSet()


def _leave_all_to_parent() -> None:
    for links in _instances:
        links.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)
