"""What a change of a map does to which buckets: decided from the map alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from datapatterns.errors import MapChangeRefusedError, RangeBoundError
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.strategies import Composite, Directory, Key, ListMap
from datapatterns.sharding.strategies.stored import range_of, unpinned

ChangeKind: TypeAlias = Literal["split", "merge", "pin", "unpin", "assign"]


@dataclass(frozen=True, slots=True)
class MapChange:
    """A change of a group's map: some keys get another bucket on the same shard; no row moves.

    Attributes:
        group: The name of the group.
        kind: What is done.
        key: The key; of ranges, where the upper one begins.
        losing: The bucket that the keys were in; None if they were in none.
        gaining: The bucket that they are in now.
        shard: Where that is.
        changed: False if it was so already.
        epoch: Of the map with the change; None as long as it is only planned.
    """

    group: str
    kind: ChangeKind
    key: Key
    losing: int | None
    gaining: int
    shard: str
    changed: bool = True
    epoch: int | None = None

    @property
    def makes_bucket(self) -> bool:
        """Return whether the gaining bucket is a new one."""
        return self.kind in {"split", "pin"}

    @property
    def ends_bucket(self) -> bool:
        """Return whether the losing bucket is no more."""
        return self.kind in {"merge", "unpin"}


Decision: TypeAlias = Callable[[ShardMap], MapChange]
"""What a change is on a certain map."""


def refuse_composite(group: EntityGroup) -> None:
    """Refuse to change where keys of two columns lie.

    Raises:
        MapChangeRefusedError: The group's keys are such.
    """
    if isinstance(group.strategy, Composite):
        raise MapChangeRefusedError(
            group.name,
            f"its keys are two columns ({group.key_type}), whose places are final",
            "move the whole bucket of a key instead",
        )


def split_at(group: EntityGroup, at: Key, shard_map: ShardMap) -> MapChange:
    """Return the change after which a range begins at ``at``.

    Raises:
        MapChangeRefusedError: The group has no ranges.
        RangeBoundError: Nothing lies below ``at``.
    """
    ranges = range_of(shard_map.strategy)
    if ranges is None:
        raise _no_ranges(group)
    if at == "":
        raise RangeBoundError(at, "nothing lies below the empty text")
    holding = ranges.bucket(at)
    if at in ranges.bounds:
        return _nothing(group, "split", at, holding, shard_map)
    return MapChange(
        group.name, "split", at, holding, len(shard_map.owners), shard_map.owners[holding]
    )


def merge_at(group: EntityGroup, at: Key, shard_map: ShardMap) -> MapChange:
    """Return the change after which no range begins at ``at``.

    Raises:
        MapChangeRefusedError: The group has no ranges, or the two lie on different shards.
    """
    ranges = range_of(shard_map.strategy)
    if ranges is None:
        raise _no_ranges(group)
    upper = ranges.bucket(at)
    if at not in ranges.bounds:
        return _nothing(group, "merge", at, upper, shard_map)
    lower = ranges.numbers[ranges.bounds.index(at)]
    return _on_one_shard(group, MapChange(group.name, "merge", at, upper, lower, ""), shard_map)


def pinned(group: EntityGroup, key: Key, shard_map: ShardMap) -> MapChange:
    """Return the change after which ``key`` has a bucket for itself.

    Raises:
        UnroutableKeyError: No bucket holds such a key.
    """
    holding = shard_map.strategy.bucket(key)
    if unpinned(shard_map.strategy, group.strategy).bucket(key) != holding:
        return _nothing(group, "pin", key, holding, shard_map)
    return MapChange(
        group.name, "pin", key, holding, len(shard_map.owners), shard_map.owners[holding]
    )


def unpinned_key(group: EntityGroup, key: Key, shard_map: ShardMap) -> MapChange:
    """Return the change after which ``key`` is where the group's strategy puts it.

    Raises:
        MapChangeRefusedError: Its bucket lies on another shard than that.
        UnroutableKeyError: No bucket holds such a key.
    """
    home = unpinned(shard_map.strategy, group.strategy).bucket(key)
    own = shard_map.strategy.bucket(key)
    if own == home:
        return _nothing(group, "unpin", key, home, shard_map)
    return _on_one_shard(group, MapChange(group.name, "unpin", key, own, home, ""), shard_map)


def assigned(group: EntityGroup, key: Key, bucket: int, shard_map: ShardMap) -> MapChange:
    """Return the change after which ``key`` is in ``bucket``.

    Raises:
        MapChangeRefusedError: The group has no keys by name, there is no such bucket, the key is
            pinned, or the two buckets lie on different shards.
    """
    listed = unpinned(shard_map.strategy, group.strategy)
    if not isinstance(listed, Directory | ListMap):
        raise MapChangeRefusedError(
            group.name,
            f"{type(listed).__name__} gives no key a bucket by name",
            "pin the key to a bucket of its own instead",
        )
    if bucket not in shard_map.buckets:
        raise MapChangeRefusedError(group.name, f"there is no bucket {bucket}", "name another")
    # A key that is listed nowhere is in no bucket, and has no rows.
    held = listed.buckets_for("=", key)
    losing = next(iter(held), None) if held else None
    if losing is not None and shard_map.strategy.bucket(key) != losing:
        raise MapChangeRefusedError(group.name, f"key {key!r} is pinned", "unpin it first")
    if losing == bucket:
        return _nothing(group, "assign", key, bucket, shard_map)
    if bucket in _pins(shard_map, group):
        raise MapChangeRefusedError(
            group.name, f"bucket {bucket} belongs to a pinned key alone", "name another"
        )
    return _on_one_shard(group, MapChange(group.name, "assign", key, losing, bucket, ""), shard_map)


def _pins(shard_map: ShardMap, group: EntityGroup) -> frozenset[int]:
    strategy = shard_map.strategy
    if unpinned(strategy, group.strategy) is strategy or not isinstance(strategy, Directory):
        return frozenset()
    return frozenset(bucket for _, bucket in strategy.entries)


def _nothing(
    group: EntityGroup, kind: ChangeKind, key: Key, bucket: int, shard_map: ShardMap
) -> MapChange:
    return MapChange(
        group.name,
        kind,
        key,
        None,
        bucket,
        shard_map.owners[bucket],
        changed=False,
        epoch=shard_map.epoch,
    )


def _on_one_shard(group: EntityGroup, change: MapChange, shard_map: ShardMap) -> MapChange:
    gaining = shard_map.owners[change.gaining]
    losing = gaining if change.losing is None else shard_map.owners[change.losing]
    if losing != gaining:
        raise MapChangeRefusedError(
            group.name,
            f"bucket {change.losing} lies on shard {losing!r}, bucket {change.gaining} on"
            f" {gaining!r}",
            "move one of them first",
        )
    return replace(change, shard=gaining)


def _no_ranges(group: EntityGroup) -> MapChangeRefusedError:
    return MapChangeRefusedError(
        group.name,
        f"{type(group.strategy).__name__} has no ranges",
        "pin single keys to buckets of their own instead",
    )
