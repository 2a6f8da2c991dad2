"""What one event loop has of a cluster: engines, the map, and sessions; needs the ``async`` extra.

Connections of asyncio belong to the loop that opened them, so each loop has its own.
"""

from asyncio import CancelledError
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from datapatterns.errors import OutcomeUnknownError, StaleShardMapError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.committing import ATTEMPTED
from datapatterns.sharding.atomic.parts import Parts
from datapatterns.sharding.atomic.work import AtomicWork
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.fan_out_async import to_the_end
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.reaching.tokens import ShardToken
from datapatterns.sharding.seeing.timing import count_statements
from datapatterns.sharding.sessions.pinned_connection import keep_claimed
from datapatterns.sharding.sessions.pinned_session import PinnedSession
from datapatterns.sharding.sessions.shard_session import ShardSession
from datapatterns.sharding.strategies.strategy import Key


class AsyncShardSession(AsyncSession):
    """An `AsyncSession` over all shards: a `ShardSession` that asks several of them in tasks.

    What that says about routing, merging and writing goes here, too. If it is cancelled, it ends
    when no shard is at work for it any more.
    """

    def __init__(self, access: ShardAccess, **options: Any) -> None:  # noqa: ANN401 -- what Session takes
        super().__init__(sync_session_class=ShardSession, access=access, **options)

    @property
    def left_to_recovery(self) -> tuple[str, ...]:
        """After a commit: the shards that show it only when recovery has been there."""
        session = self.sync_session
        return session.left_to_recovery if isinstance(session, ShardSession) else ()


class AsyncAtomicWork:
    """Connections to shards whose work is committed on all of them, or on none."""

    def __init__(self, work: AtomicWork) -> None:
        self._work = work

    @property
    def left_to_recovery(self) -> tuple[str, ...]:
        """After the commit: the shards that show it only when recovery has been there."""
        return self._work.left_to_recovery

    @property
    def token(self) -> ShardToken:
        """After the commit: what a replica has to show to whoever comes after, as for sessions."""
        return self._work.token

    async def connect(self, group: EntityGroup, **key: Key) -> AsyncConnection:
        """Return a connection to the shard of one key, in this transaction.

        Keys of one shard share it. Leave commit and rollback to the block.

        Raises:
            ShardKeyError: The value is no key of this group.
            ShardUnavailableError: The shard does not answer.
            StaleShardMapError: The key has moved; repeat the transaction.
        """
        conn = await greenlet_spawn(partial(self._work.connect, group, **key))
        return AsyncConnection(AsyncEngine(conn.engine), conn)


@dataclass(frozen=True, slots=True)
class AsyncShards:
    """The engines of one event loop, and what is done with them.

    Attributes:
        control: The control database.
        access: The way to the shards.
    """

    control: Engine
    access: ShardAccess

    @asynccontextmanager
    async def on(self, group: EntityGroup, key: Key) -> AsyncIterator[AsyncSession]:
        """Give a session on the shard of one key."""

        def pinned(**options: Any) -> PinnedSession:  # noqa: ANN401 -- what Session takes
            return PinnedSession(self.access, group, key, **options)

        # Where the key is, the control database may have to say.
        session = await greenlet_spawn(
            AsyncSession, sync_session_class=cast("type[Session]", pinned)
        )
        async with session:
            yield session

    @asynccontextmanager
    async def connect(self, group: EntityGroup, key: Key) -> AsyncIterator[AsyncConnection]:
        """Give a connection to the shard of one key, for Core."""
        access = self.access
        shard_map = await greenlet_spawn(access.router.map_of, group)
        shard_id, bucket = shard_map.shard_of(key), shard_map.strategy.bucket(key)
        try:
            with shard_errors(shard_id):
                async with AsyncEngine(access.engines[shard_id]).connect() as conn:
                    within = conn.sync_connection
                    assert within is not None  # it has been started
                    keep_claimed(within, shard_map, bucket, schema=access.schema)
                    count_statements(within, access.load, shard_map, bucket, key)
                    yield conn
        except StaleShardMapError:
            await greenlet_spawn(access.router.refresh)
            raise

    @asynccontextmanager
    async def atomically(self, lock_seconds: float) -> AsyncIterator[AsyncAtomicWork]:
        """Open a transaction over several shards."""
        parts = Parts(self.access, lock_seconds=lock_seconds)
        work, committed = AtomicWork(self.access, parts), False
        try:
            yield AsyncAtomicWork(work)
            work.left_to_recovery, work.token = await greenlet_spawn(parts.commit_and_tell)
            committed = True
        finally:
            try:
                await to_the_end(parts.close)
            except CancelledError as cancelled:
                if not committed:
                    raise
                reason = "cancelled after it was committed"
                raise cancelled from OutcomeUnknownError(ATTEMPTED, reason=reason)

    async def close(self) -> None:
        """Close all connections that nobody uses."""
        await greenlet_spawn(self.access.combiner.close)
        await greenlet_spawn(self.access.replicas.close)
        side_engines = self.access.companions.side_engines
        for engine in (self.control, *self.access.engines.values(), *side_engines.values()):
            await greenlet_spawn(engine.dispose)
