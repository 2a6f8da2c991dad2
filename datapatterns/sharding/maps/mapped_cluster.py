"""What a cluster can be told about which keys share a bucket."""

from functools import partial

from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.changing import MapChanging
from datapatterns.sharding.maps.map_change import (
    MapChange,
    assigned,
    merge_at,
    pinned,
    refuse_composite,
    split_at,
    unpinned_key,
)
from datapatterns.sharding.strategies.strategy import Key


class MappedCluster:
    """The part of a `ShardCluster` that changes its maps while they are in use.

    No row moves: what gets another bucket stays on its shard, from where the bucket can be moved.
    All of it can be repeated: what is so already is left as it is, and what a crash has left half
    done is finished first. Other processes go on with the map before until they have read the new
    one, and are refused by the shard as soon as that could go wrong.
    """

    @property
    def _changing(self) -> MapChanging:
        raise NotImplementedError

    def split_range(self, group: EntityGroup, *, at: Key, dry_run: bool = False) -> MapChange:
        """Cut a range in two; its upper part, from ``at``, becomes a bucket of its own.

        Args:
            group: One whose strategy has ranges.
            at: Where the new range begins.
            dry_run: Only say what would be done.

        Raises:
            MapChangeRefusedError: The group has no ranges, or the bucket is moving.
            MapChangeUnsettledError: It is done, and old transactions are still running.
            RangeBoundError: Nothing lies below ``at``.
            ShardKeyError: ``at`` is no key of this group.
            ShardUnavailableError: The shard does not answer; do it again when it does.
        """
        refuse_composite(group)
        key = group.checked_key(at)
        return self._changing.run(group, partial(split_at, group, key), dry_run=dry_run)

    def merge_ranges(self, group: EntityGroup, *, at: Key, dry_run: bool = False) -> MapChange:
        """Make the range that begins at ``at`` one with that below it.

        Args:
            group: One whose strategy has ranges.
            at: Where the upper one begins.
            dry_run: Only say what would be done.

        Raises:
            MapChangeRefusedError: The group has no ranges, the two lie on different shards, or one
                of them is moving.
            MapChangeUnsettledError: It is done, and old transactions are still running.
            ShardKeyError: ``at`` is no key of this group.
            ShardUnavailableError: The shard does not answer; do it again when it does.
        """
        refuse_composite(group)
        key = group.checked_key(at)
        return self._changing.run(group, partial(merge_at, group, key), dry_run=dry_run)

    def pin(self, group: EntityGroup, key: Key, *, dry_run: bool = False) -> MapChange:
        """Give one key a bucket for itself, so that it can be moved without any other.

        Args:
            group: Of any strategy.
            key: Such as a tenant that grows out of its shard.
            dry_run: Only say what would be done.

        Raises:
            MapChangeRefusedError: The key's bucket is moving.
            MapChangeUnsettledError: It is done, and old transactions are still running.
            ShardKeyError: It is no key of this group.
            ShardUnavailableError: The shard does not answer; do it again when it does.
            UnroutableKeyError: No bucket holds such a key.
        """
        refuse_composite(group)
        found = group.checked_key(key)
        return self._changing.run(group, partial(pinned, group, found), dry_run=dry_run)

    def unpin(self, group: EntityGroup, key: Key, *, dry_run: bool = False) -> MapChange:
        """Put a pinned key back to where the strategy has it.

        Args:
            group: Of any strategy.
            key: The key.
            dry_run: Only say what would be done.

        Raises:
            MapChangeRefusedError: Its bucket lies on another shard, or is moving.
            MapChangeUnsettledError: It is done, and old transactions are still running.
            ShardKeyError: It is no key of this group.
            ShardUnavailableError: The shard does not answer; do it again when it does.
        """
        refuse_composite(group)
        found = group.checked_key(key)
        return self._changing.run(group, partial(unpinned_key, group, found), dry_run=dry_run)

    def assign(
        self, group: EntityGroup, key: Key, bucket: int, *, dry_run: bool = False
    ) -> MapChange:
        """Put a key into a bucket by name.

        Args:
            group: One whose strategy is a `Directory` or a `ListMap`.
            key: The key.
            bucket: On the shard that has the key; of a key that was in no list, on any.
            dry_run: Only say what would be done.

        Raises:
            MapChangeRefusedError: The group's strategy gives no bucket by name, there is no such
                bucket, it lies on another shard, or one of the two is moving.
            MapChangeUnsettledError: It is done, and old transactions are still running.
            ShardKeyError: It is no key of this group.
            ShardUnavailableError: The shard does not answer; do it again when it does.
        """
        refuse_composite(group)
        found = group.checked_key(key)
        decide = partial(assigned, group, found, bucket)
        return self._changing.run(group, decide, dry_run=dry_run)
