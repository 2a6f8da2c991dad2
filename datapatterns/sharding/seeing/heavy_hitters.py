"""Find the keys that are asked for most, with a fixed amount of memory and bounds that hold.

The algorithm is Space-Saving (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and
Top-k Elements in Data Streams, ICDT 2005). Sketches add up as in Agarwal et al.: Mergeable
Summaries, PODS 2012.
"""

import heapq
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Hitter(Generic[KeyT]):
    """What a sketch knows of one key.

    Attributes:
        key: Which.
        hits: It had at most so many hits.
        max_error: And at least ``hits - max_error``.
        busy_us: How long what it asked for took, in microseconds, since it was noticed last.
    """

    key: KeyT
    hits: int
    max_error: int
    busy_us: int = 0


class HeavyHitters(Generic[KeyT]):
    """At most ``size`` counters, among them every key with more than ``total / size`` hits.

    A hit costs about as much as one in a `dict`; one of a key that is not held a few times that.
    Not for several threads at once.

    Args:
        size: How many keys are counted.
    """

    __slots__ = ("_busy_us", "_error", "_heap", "_hits", "_serial", "floor", "size", "total")

    def __init__(self, size: int = 256) -> None:
        if size < 1:
            raise ValueError("count at least one key")
        self.size = size
        self.total = 0
        self.floor = 0
        """A key that is not held had at most so many hits."""
        self._hits: dict[KeyT, int] = {}
        self._error: dict[KeyT, int] = {}
        self._busy_us: dict[KeyT, int] = {}
        # Some past count of each key: it never falls, so whatever is least here and still true is
        # the least of all. The serial keeps keys from being compared.
        self._heap: list[tuple[int, int, KeyT]] = []
        self._serial = 0

    def add(self, key: KeyT, hits: int = 1, *, busy_us: int = 0) -> None:
        """Count hits of ``key``."""
        self.total += hits
        counted = self._hits
        if key in counted:
            counted[key] += hits
            if busy_us:
                self._busy_us[key] += busy_us
            return
        if len(counted) < self.size:
            known = self.floor  # not 0 after a merge or a trim, when a key may have been dropped
            heapq.heappush(self._heap, (known + hits, self._next(), key))
        else:
            known = self._drop_least()
            heapq.heapreplace(self._heap, (known + hits, self._next(), key))
        counted[key] = known + hits
        self._error[key] = known
        self._busy_us[key] = busy_us

    def merged(self, other: "HeavyHitters[KeyT]") -> "HeavyHitters[KeyT]":
        """Return what one sketch would know of the hits of both: its bounds hold as well."""
        both = HeavyHitters[KeyT](max(self.size, other.size))
        found = []
        for key in {*self.keys(), *other.keys()}:
            mine, theirs = self.of(key), other.of(key)
            busy_us = mine.busy_us + theirs.busy_us
            hits = mine.hits + theirs.hits
            found.append(Hitter(key, hits, mine.max_error + theirs.max_error, busy_us))
        both._keep(found, floor=self.floor + other.floor, total=self.total + other.total)
        return both

    def trimmed(self, size: int) -> "HeavyHitters[KeyT]":
        """Return the ``size`` keys with the most hits, and of them those that stand out.

        Keys without more than ``total / self.size`` hits are noise: a sketch does not promise to
        hold such.
        """
        fewer = HeavyHitters[KeyT](size)
        noise = self.total // self.size
        loud = [hitter for hitter in self.top(len(self._hits)) if hitter.hits > noise]
        quiet = max((hits for hits in self._hits.values() if hits <= noise), default=0)
        fewer._keep(loud, floor=max(self.floor, quiet), total=self.total)
        return fewer

    def keys(self) -> list[KeyT]:
        """Return the keys that are held, in no order."""
        return [*self._hits]

    def of(self, key: KeyT) -> Hitter[KeyT]:
        """Return what is known of ``key``."""
        if key in self._hits:
            return Hitter(key, self._hits[key], self._error[key], self._busy_us[key])
        return Hitter(key, self.floor, self.floor)

    def top(self, limit: int) -> list[Hitter[KeyT]]:
        """Return the keys with the most hits, the first first."""
        most = heapq.nlargest(limit, self._hits.items(), key=lambda item: item[1])
        return [self.of(key) for key, _ in most]

    def _drop_least(self) -> int:
        while True:
            past, serial, key = self._heap[0]
            now = self._hits[key]
            if now == past:
                break
            heapq.heapreplace(self._heap, (now, serial, key))
        del self._hits[key], self._error[key], self._busy_us[key]
        # The least count never falls, so this bounds whatever was dropped before as well.
        self.floor = max(self.floor, past)
        return self.floor

    def _keep(self, found: list[Hitter[KeyT]], *, floor: int, total: int) -> None:
        ordered = sorted(found, key=lambda hitter: -hitter.hits)
        kept, dropped = ordered[: self.size], ordered[self.size :]
        self.floor = max([floor, *(hitter.hits for hitter in dropped[:1])])
        self.total = total
        for hitter in kept:
            self._hits[hitter.key] = hitter.hits
            self._error[hitter.key] = hitter.max_error
            self._busy_us[hitter.key] = hitter.busy_us
            self._heap.append((hitter.hits, self._next(), hitter.key))
        heapq.heapify(self._heap)

    def _next(self) -> int:
        self._serial += 1
        return self._serial
