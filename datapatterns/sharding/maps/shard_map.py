"""Which shard owns which bucket: a value, and how one is first laid out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeVar

from datapatterns.sharding.strategies.strategy import Key, ShardingStrategy

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Where the buckets of one group lie, as of an epoch.

    Attributes:
        group_id: What the servers call the group.
        epoch: Raised by each change.
        strategy: Which bucket holds a key.
        owners: The shard of each bucket, in the order of the buckets.
        generations: How often a bucket has lost keys, for those that have.
        successors: Where keys of a bucket may have gone: to buckets that were split off from it, to
            that which it was merged into, to those that single keys were given to.
        merged: The buckets that are no more.
        parents: What a bucket was split off from.
        moving: The buckets that a move is not done with, so two shards may have rows of them.
    """

    group_id: int
    epoch: int
    strategy: ShardingStrategy
    owners: tuple[str, ...]
    generations: Mapping[int, int] = field(default_factory=dict)
    successors: Mapping[int, frozenset[int]] = field(default_factory=dict)
    merged: frozenset[int] = frozenset()
    parents: Mapping[int, int] = field(default_factory=dict)
    moving: frozenset[int] = frozenset()
    _digests: dict[str, str | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def buckets(self) -> list[int]:
        """Return the buckets that there are, ascending."""
        return [bucket for bucket in range(len(self.owners)) if bucket not in self.merged]

    def shard_of(self, key: Key) -> str:
        """Return the shard that holds the rows of ``key``."""
        return self.owners[self.strategy.bucket(key)]

    def buckets_of(self, keys: Iterable[Key]) -> frozenset[int]:
        """Return the buckets that hold the rows of any of ``keys``.

        Raises:
            UnroutableKeyError: No bucket holds one of them.
        """
        return frozenset(map(self.strategy.bucket, keys))

    def buckets_with(self, keys: Iterable[Key]) -> frozenset[int]:
        """Return the buckets that can hold rows of any of ``keys``; some keys may have none."""
        found = self.strategy.buckets_for("in", [*keys])
        return frozenset(self.buckets) if found is None else found

    def generations_of(self, buckets: Iterable[int]) -> list[int]:
        """Return the generation of each bucket; a shard refuses who knows it by an older one."""
        return [self.generations.get(bucket, 0) for bucket in buckets]

    def buckets_since(self, bucket: int) -> frozenset[int]:
        """Return where rows are now that were in ``bucket`` when they, or their ids, were made.

        Most buckets never change, and are their own answer.

        Raises:
            ValueError: There was never such a bucket.
        """
        if not 0 <= bucket < len(self.owners):
            raise ValueError(f"there is no bucket {bucket}; there are {len(self.owners)}")
        seen, ahead = {bucket}, [bucket]
        while ahead:
            new = self.successors.get(ahead.pop(), frozenset()) - seen
            seen |= new
            ahead.extend(new)
        return frozenset(seen - self.merged)

    def relatives(self, buckets: Iterable[int]) -> frozenset[int]:
        """Return ``buckets``, and all that keys went to from them, or came from, by any way."""
        beside: dict[int, set[int]] = {}
        for earlier, later in self.successors.items():
            for each in later:
                beside.setdefault(each, set()).add(earlier)
                beside.setdefault(earlier, set()).add(each)
        seen = set(buckets)
        ahead = [*seen]
        while ahead:
            new = beside.get(ahead.pop(), set()) - seen
            seen |= new
            ahead.extend(new)
        return frozenset(seen)

    def shards_of(self, buckets: Iterable[int]) -> frozenset[str]:
        """Return the shards that hold any of ``buckets``."""
        return frozenset(self.owners[bucket] for bucket in buckets)

    def buckets_on(self, shard_id: str) -> list[int]:
        """Return the buckets of a shard, ascending."""
        return [bucket for bucket in self.buckets if self.owners[bucket] == shard_id]

    def elsewhere(self, shard_id: str) -> list[int]:
        """Return the buckets of others that a shard may have rows of, ascending."""
        return [
            bucket
            for bucket in sorted(self.moving)
            if bucket >= len(self.owners) or self.owners[bucket] != shard_id
        ]

    def digest(self, shard_id: str) -> str | None:
        """Return what the server's ``owned_digest`` says if it agrees; None if it owns nothing."""
        if shard_id not in self._digests:
            # As text the server sorts nothing: it orders by the bucket's number, as this does.
            owned = ",".join(f"{bucket}owned" for bucket in self.buckets_on(shard_id))
            self._digests[shard_id] = sha256(owned.encode()).hexdigest() if owned else None
        return self._digests[shard_id]

    def placed(self, rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[str, list[Row]]:
        """Return the rows by shard, in their order; a shard that gets none is left out."""
        placed: dict[str, list[Row]] = {}
        lists: dict[Key, list[Row]] = {}
        for row in rows:
            row_key = key(row)
            of_key = lists.get(row_key)
            if of_key is None:
                of_key = lists[row_key] = placed.setdefault(self.shard_of(row_key), [])
            of_key.append(row)
        return placed


def spread_evenly(buckets: int, shards: Sequence[str]) -> tuple[str, ...]:
    """Return a shard for each bucket, so that no shard gets more than one above another.

    The order of ``shards`` does not matter.
    """
    if not shards:
        raise ValueError("there is no shard to spread buckets over")
    if len(shards) > buckets:
        raise ValueError(f"{len(shards)} shards cannot share {buckets} buckets")
    ordered = sorted(shards)
    return tuple(ordered[bucket % len(ordered)] for bucket in range(buckets))
