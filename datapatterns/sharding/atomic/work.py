"""A transaction of the caller's over several shards."""

from sqlalchemy import Connection

from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.parts import Parts
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.ownership import claim_buckets
from datapatterns.sharding.strategies.strategy import Key


class AtomicWork:
    """Connections to shards whose work is committed on all of them, or on none.

    Attributes:
        left_to_recovery: After the commit: the shards that show it only when recovery has been
            there. It happens as certainly.
    """

    def __init__(self, access: ShardAccess, parts: Parts) -> None:
        self.left_to_recovery: tuple[str, ...] = ()
        self._access = access
        self._parts = parts
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
        if self._access.load is not None:
            self._access.load.add(shard_map.group_id, (bucket,), (found,), writes=True)
        with self._access.asking(shard):
            conn = self._parts.on(shard)
            if (shard_map.group_id, bucket) not in self._claimed:
                claim_buckets(conn, shard_map, [bucket], schema=self._access.schema)
                # In a savepoint of the caller's it would be given back with that.
                if not conn.in_nested_transaction():
                    self._claimed.add((shard_map.group_id, bucket))
        return conn
