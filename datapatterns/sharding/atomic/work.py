"""A transaction of the caller's over several shards."""

from contextlib import ExitStack
from typing import Any

from sqlalchemy import Connection, RootTransaction, func, select

from datapatterns.errors import ShardTransactionEndedError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.committing import ATTEMPTED, Commit, Writer
from datapatterns.sharding.atomic.waiting import wait_for_locks_at_most
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.ownership import claim_buckets
from datapatterns.sharding.strategies.strategy import Key
from datapatterns.transactions import refuse_aborted


class AtomicWork:
    """Connections to shards whose work is committed on all of them, or on none.

    Attributes:
        left_to_recovery: After the commit: the shards that show it only when recovery has been
            there. It happens as certainly.
    """

    def __init__(self, access: ShardAccess, stack: ExitStack, lock_seconds: float) -> None:
        self.left_to_recovery: tuple[str, ...] = ()
        self._access = access
        self._stack = stack
        self._lock_seconds = lock_seconds
        self._parts: dict[str, tuple[Connection, RootTransaction]] = {}
        self._claimed: set[tuple[int, int]] = set()

    def connect(self, group: EntityGroup, **key: Key) -> Connection:
        """Return a connection to the shard of one key, in this transaction.

        Keys of one shard share it. Leave commit and rollback to the block.

        Raises:
            ShardKeyError: The value is no key of this group.
            ShardUnavailableError: The shard does not answer.
            StaleShardMapError: The key has moved; repeat the transaction.
        """
        found = group.key_from(key)
        shard_map = self._access.router.map_of(group)
        shard, bucket = shard_map.shard_of(found), shard_map.strategy.bucket(found)
        with self._access.asking(shard):
            conn = self._part(shard)
            if (shard_map.group_id, bucket) not in self._claimed:
                claim_buckets(conn, shard_map, [bucket], schema=self._access.schema)
                # In a savepoint of the caller's it would be given back with that.
                if not conn.in_nested_transaction():
                    self._claimed.add((shard_map.group_id, bucket))
        return conn

    def commit(self) -> None:
        """Commit on every shard that has been written to; called at the end of the block."""
        writers = []
        for shard, (conn, transaction) in self._parts.items():
            if not transaction.is_active or conn.get_transaction() is not transaction:
                raise ShardTransactionEndedError(shard)
            refuse_aborted(conn, ATTEMPTED)
            with self._access.asking(shard):
                # A function may write behind a SELECT.
                if conn.scalar(select(func.pg_current_xact_id_if_assigned().is_not(None))):
                    writers.append(Writer(shard, conn, transaction))
        if len(writers) == 1:
            with self._access.asking(writers[0].shard):
                writers[0].transaction.commit()
        elif writers:
            commit = Commit(self._access.engines, self._access.executor, self._access.schema)
            with self._access.learning():
                self.left_to_recovery = commit.run(writers)

    def _part(self, shard: str) -> Connection:
        if shard not in self._parts:
            conn = self._stack.enter_context(self._access.engines[shard].connect())
            self._parts[shard] = conn, conn.begin()
            wait_for_locks_at_most(conn, seconds=self._lock_seconds)
            conn.execute(_WAIT_FOR_THE_DISK)
        return self._parts[shard][0]


_setting: Any = func.current_setting("synchronous_commit")
# What is prepared must not be lost in a crash that leaves the decision.
_WAIT_FOR_THE_DISK = select(func.set_config("synchronous_commit", "on", True)).where(
    _setting == "off"
)
