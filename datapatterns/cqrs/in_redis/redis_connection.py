"""One Redis, or the node of a cluster that has a read model's slot."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from redis import Redis
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from datapatterns.cqrs.in_redis.redis_checkpoint import decoded
from datapatterns.errors import ServerUnavailableError

AnyRedis: TypeAlias = Redis | RedisCluster

_KEYS_PER_STEP: Final = 1_000

UNANSWERED: Final = (
    RedisConnectionError,
    RedisTimeoutError,
    ReadOnlyError,
    OutOfMemoryError,
    ClusterDownError,
    MasterDownError,
    TryAgainError,
    RedisClusterException,  # no node answers, or none has the slot
)
"""What says that Redis cannot do it now."""

_FOR_NOW: Final = re.compile(r"(\A|error: )(BUSY|MISCONF|NOREPLICAS) ")
"""Says so without a class of its own: a script runs, it cannot save, it has no replicas."""


@contextmanager
def redis_answers() -> Iterator[None]:
    """Say in our words that Redis did not answer; on a method, that it needs Redis.

    What was under way then may have happened or not: the checkpoint tells.
    """
    try:
        yield
    except UNANSWERED as error:
        raise ServerUnavailableError("Redis", str(error)) from error
    except ResponseError as error:
        if not _FOR_NOW.search(str(error)):
            raise
        raise ServerUnavailableError("Redis", str(error)) from error


def keys_like(client: AnyRedis, key: str, pattern: str) -> Iterator[str]:
    """Yield the keys that match ``pattern``, all of which are in the slot of ``key``.

    It scans all keys of that Redis, in small steps.
    """
    where: dict[str, Any] = {}
    if isinstance(client, RedisCluster):
        where = {"target_nodes": _node(client, key)}
    yield from map(decoded, client.scan_iter(match=pattern, count=_KEYS_PER_STEP, **where))


def memory_of(client: AnyRedis, key: str) -> dict[str, Any]:
    """Return what the server of ``key`` says about its memory."""
    where = {"target_nodes": _node(client, key)} if isinstance(client, RedisCluster) else {}
    return client.info("memory", **where)


def _node(client: RedisCluster, key: str) -> ClusterNode:
    # Asked about the key first, so that a slot that moved is looked for where it is now.
    client.exists(key)
    node: ClusterNode = client.get_node_from_key(key)  # type: ignore[no-untyped-call] # redis-py's
    return node
