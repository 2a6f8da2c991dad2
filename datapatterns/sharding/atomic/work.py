"""A transaction of the caller's over several shards."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, inspect
from sqlalchemy.orm import Mapper

from datapatterns.errors import ShardedTableError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.parts import Parts
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.tokens import ShardToken
from datapatterns.sharding.references.checking import ReferenceChecks
from datapatterns.sharding.rekeying.row_moving import RowMove, RowMoving
from datapatterns.sharding.strategies.strategy import Key


class AtomicWork:
    """Connections to shards whose work is committed on all of them, or on none.

    Attributes:
        left_to_recovery: After the commit: the shards that show it only when recovery has been
            there. It happens as certainly.
        token: After the commit: what a replica has to show to whoever comes after, as for sessions.
    """

    def __init__(self, access: ShardAccess, parts: Parts) -> None:
        self.left_to_recovery: tuple[str, ...] = ()
        self.token = ShardToken()
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
        return self._on(shard, shard_map, bucket)

    def move_row(
        self,
        table: type | Table,
        key: Mapping[str, Any],
        *,
        with_children: bool = False,
        **new_key: Key,
    ) -> RowMove:
        """Give a row another shard key in this transaction, as `ShardCluster.move_row` does.

        Raises:
            IntegrityError: Another row is in the way there, or what the row refers to is missing.
            ParentInUseError: Rows of other shards refer to it.
            RowHasDependantsError: Others refer to it, and are not to move along.
            RowMissingError: There is no such row.
        """
        mapper: Mapper[Any] | None = None if isinstance(table, Table) else inspect(table)
        found: object = table if mapper is None else mapper.base_mapper.local_table
        own = [] if mapper is None else [t for t in mapper.tables if isinstance(t, Table)]
        assert isinstance(found, Table)
        shard_key = self._access.placements.shard_key(found)
        if shard_key is None:
            raise ShardedTableError(found.name, "it has no shard key that could be changed")
        moving = RowMoving(
            self._access,
            self._on,
            with_children=with_children,
            own_tables=own,
            check=ReferenceChecks(self._access, _Reach(self._access, self._parts)).check,
        )
        return moving.move(found, key, shard_key.group.key_from(new_key))

    def _on(self, shard: str, shard_map: ShardMap, bucket: int) -> Connection:
        with self._access.asking(shard):
            conn = self._parts.reach(shard)
            if (shard_map.group_id, bucket) not in self._claimed:
                self._parts.claim(shard, shard_map, [bucket])
                # In a savepoint of the caller's it would be given back with that.
                if not conn.in_nested_transaction():
                    self._claimed.add((shard_map.group_id, bucket))
        return conn


@dataclass(frozen=True, slots=True)
class _Reach:
    """What references may do with such a transaction."""

    access: ShardAccess
    parts: Parts

    def connect(self, shards: Collection[str]) -> dict[str, Connection]:
        self.parts.open(shards)
        return {shard: self.parts.on(shard) for shard in shards}

    def write_to(self, shard: str) -> None:
        """Every shard may be written to."""

    def claim(self, shard: str, shard_map: ShardMap, buckets: Collection[int]) -> None:
        with self.access.asking(shard):
            self.parts.reach(shard)
            self.parts.claim(shard, shard_map, buckets)

    def is_in_savepoint(self) -> bool:
        """Return that it may be: the caller has the connections."""
        return True
