"""One connection to Redis or Valkey that is kept open, and sure which server it talks to."""

import re
from collections.abc import Sequence
from typing import Final

from redis.connection import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from datapatterns.cache_aside.lua_scripts import SCRIPTS, Command
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.errors import SettingsError

UNREACHABLE: Final = (RedisConnectionError, RedisTimeoutError, InvalidResponse, OSError)
WHO_ARE_YOU: Final[Sequence[Command]] = (("INFO", "server"), ("INFO", "replication"))
_FIELD = re.compile(r"^(run_id|master_replid|redis_mode|server_mode):([^\r\n]*)", re.MULTILINE)


class Refused(CacheSilence):
    """The server answered with an error.

    Attributes:
        error: What it said.
    """

    def __init__(self, error: ResponseError) -> None:
        super().__init__(str(error))
        self.error = error


class Link:
    """One open connection; whoever took it is alone with it."""

    __slots__ = ("connection", "identity", "is_used", "pack", "receive", "send")

    def __init__(self, pool: ConnectionPool, *, in_cluster: bool = False) -> None:
        self.connection = pool.connection_class(**pool.connection_kwargs)
        self.connection.connect()
        self.pack = self.connection.pack_command
        self.send = self.connection.send_packed_command
        self.receive = self.connection.read_response
        self.is_used = False
        self.send_all(WHO_ARE_YOU)
        self.identity = identity_in(self.receive_all(WHO_ARE_YOU), in_cluster=in_cluster)

    def send_all(self, commands: Sequence[Command]) -> None:
        """Send commands one after the other."""
        self.send(self.connection.pack_commands(commands), check_health=False)

    def receive_all(self, commands: Sequence[Command]) -> list[object]:
        """Return the replies to what was sent; an error that the server answered with is one.

        A script that the server misses is sent in full.
        """
        replies = [self._received() for _ in commands]
        for place, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                _, sha, *rest = commands[place]
                self.send(self.pack("EVAL", SCRIPTS[str(sha)].source, *rest), check_health=False)
                replies[place] = self._received()
        return replies

    def close(self) -> None:
        """Let go of the server."""
        self.connection.disconnect()

    def _received(self) -> object:
        try:
            reply: object = self.receive(disable_decoding=True)
        except ResponseError as error:
            return error
        return reply


def identity_in(replies: Sequence[object], *, in_cluster: bool = False) -> str:
    """Return which run of which server gave these replies to `WHO_ARE_YOU`.

    A restart draws another run id, a failover another replication id: after either, values may
    be back that had been deleted.

    Raises:
        ResponseError: It does not say.
        SettingsError: It is a node of a cluster, or should be one and is not.
    """
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply
    text = b"".join(reply for reply in replies if isinstance(reply, bytes))
    found = dict(_FIELD.findall(text.decode(errors="replace")))
    mode = found.get("redis_mode") or found.get("server_mode")  # Redis calls it so, or Valkey
    if (mode == "cluster") is not in_cluster:
        raise SettingsError("redis", _ONE_OF_MANY if not in_cluster else _ALONE)
    return f"{found.get('run_id')}:{found.get('master_replid')}"


_ONE_OF_MANY = "it is a node of a cluster; write redis+cluster://, or give a RedisCluster"
_ALONE = "it is no node of a cluster; write redis://"


def without_errors(replies: list[object]) -> list[object]:
    """Return ``replies`` if none of them is an error.

    Raises:
        Refused: One is.
    """
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise Refused(reply) from reply
    return replies
