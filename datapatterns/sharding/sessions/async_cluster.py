"""The part of a cluster that is for asyncio; needs the ``async`` extra."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.strategies.strategy import Key

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from datapatterns.sharding.sessions.async_shards import (
        AsyncAtomicWork,
        AsyncShards,
        AsyncShardSession,
    )


class AsyncCluster:
    """What a `ShardCluster` offers to asyncio.

    Event loops may share a cluster, also those of several threads: each has connections of its own,
    and closes them with `aclose` before it ends.
    """

    def __init__(self) -> None:
        self._loops: dict[AbstractEventLoop, AsyncShards] = {}
        self._loops_lock = Lock()

    def async_session(
        self,
        *,
        scatter: bool = False,
        atomic: bool = False,
        **options: Any,  # noqa: ANN401 -- what Session takes
    ) -> "AsyncShardSession":
        """Return a session over all shards, which asks several of them in tasks.

        Args:
            scatter: Whether reads that name no key go to all shards without being told to.
            atomic: Whether a transaction may write to several shards, and then happens on all of
                them or on none, as `atomically` says.
            options: What `Session` takes, such as ``expire_on_commit``.
        """
        from datapatterns.sharding.sessions.async_shards import (  # noqa: PLC0415 -- needs an extra
            AsyncShardSession,
        )

        access = self._of_this_loop().access
        return AsyncShardSession(access, scatter=scatter, atomic=atomic, **options)

    @asynccontextmanager
    async def async_on(self, group: EntityGroup, **key: Key) -> "AsyncIterator[AsyncSession]":
        """Give a session on the shard of one key, as `ShardCluster.on` does.

        Raises:
            ShardKeyError: The value is no key of this group.
        """
        async with self._of_this_loop().on(group, group.key_from(key)) as session:
            yield session

    @asynccontextmanager
    async def async_connect(
        self, group: EntityGroup, **key: Key
    ) -> "AsyncIterator[AsyncConnection]":
        """Give a connection to the shard of one key, for Core, as `ShardCluster.connect` does.

        Raises:
            ShardKeyError: The value is no key of this group.
            ShardUnavailableError: The shard does not answer.
            StaleShardMapError: The key has moved; repeat the transaction on a new connection.
        """
        async with self._of_this_loop().connect(group, group.key_from(key)) as conn:
            yield conn

    @asynccontextmanager
    async def async_atomically(
        self, *, lock_seconds: float = 5.0
    ) -> "AsyncIterator[AsyncAtomicWork]":
        """Open a transaction over several shards, as `ShardCluster.atomically` does.

        Once its commit has begun, it is brought to its end: a cancellation comes out after that,
        and has an `OutcomeUnknownError` as its cause if all was committed.

        Args:
            lock_seconds: How long to wait for a lock.

        Raises:
            Exception: What `ShardCluster.atomically` raises.
        """
        async with self._of_this_loop().atomically(lock_seconds) as work:
            yield work

    async def aclose(self) -> None:
        """Close all idle connections that this event loop has opened, and those of closed loops."""
        from asyncio import get_running_loop  # noqa: PLC0415 -- only needed here

        with self._loops_lock:
            mine = get_running_loop()
            ended = [loop for loop in self._loops if loop is mine or loop.is_closed()]
            theirs = [self._loops.pop(loop) for loop in ended]
        for shards in theirs:
            await shards.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    def _of_this_loop(self) -> "AsyncShards":
        from asyncio import get_running_loop  # noqa: PLC0415 -- only needed here

        loop = get_running_loop()
        with self._loops_lock:
            if loop not in self._loops:
                self._loops[loop] = self._async_shards()
            return self._loops[loop]

    def _async_shards(self) -> "AsyncShards":
        raise NotImplementedError
