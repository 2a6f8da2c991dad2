"""What one process has counted since it wrote that down last: pure."""

from collections.abc import Collection
from dataclasses import dataclass, field

from datapatterns.sharding.seeing.heavy_hitters import HeavyHitters
from datapatterns.sharding.strategies.strategy import Key


@dataclass(slots=True)
class BucketCount:
    """What a bucket was asked.

    Attributes:
        reads: How many statements read from it.
        writes: How many wrote to it, and objects that were flushed into it.
        busy_us: How long they took, in microseconds, as their process saw it. A statement for
            several buckets counts for each with its share.
    """

    reads: int = 0
    writes: int = 0
    busy_us: int = 0

    @property
    def hits(self) -> int:
        """Reads and writes."""
        return self.reads + self.writes


@dataclass(slots=True)
class LoadCounts:
    """The counters of one group.

    Attributes:
        buckets: By bucket.
        keys: The keys that were asked for most.
    """

    buckets: dict[int, BucketCount] = field(default_factory=dict)
    keys: HeavyHitters[Key] = field(default_factory=HeavyHitters)

    def add(
        self, buckets: Collection[int], keys: Collection[Key], *, writes: bool, busy_us: int
    ) -> None:
        """Count a statement once for each of its buckets and keys."""
        share = busy_us if len(buckets) == 1 else busy_us // (len(buckets) or 1)
        for bucket in buckets:
            count = self.buckets.get(bucket)
            if count is None:
                count = self.buckets[bucket] = BucketCount()
            if writes:
                count.writes += 1
            else:
                count.reads += 1
            count.busy_us += share
        if len(keys) > 1:
            share = busy_us // len(keys)
        for key in keys:
            self.keys.add(key, busy_us=share)

    @property
    def hits(self) -> int:
        """How many statements were counted, those for several buckets once for each."""
        return sum(count.hits for count in self.buckets.values())
