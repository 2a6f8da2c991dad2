"""Which worker is to move which segment on: all compute the same plan from the same rows.

So nobody has to decide for the others. Plans of two workers differ while one has not seen yet what
the other has; that costs a claim in vain, for a lease says who really has a segment.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

Version: TypeAlias = tuple[str, int]
"""The name of a projection, and its version."""


class SegmentKey(NamedTuple):
    """One segment of one version."""

    name: str
    version: int
    shard: int

    @property
    def of_version(self) -> Version:
        """Whose segment it is."""
        return self.name, self.version


def plan_shares(
    owners: Mapping[SegmentKey, str | None], workers: Mapping[str, frozenset[Version]]
) -> dict[SegmentKey, str]:
    """Return whose each segment is to be: spread evenly, moved as little as that allows.

    Each version is spread evenly over the workers that know it, and so is their sum, as far as
    all know the same. Segments that somebody else holds, such as an operator, are left to them.

    Args:
        owners: Who holds the lease on each segment that may run; None if nobody does.
        workers: Which versions each worker that is alive knows.

    >>> a, b, c = (SegmentKey(name, 1, 0) for name in "abc")
    >>> both = frozenset({("a", 1), ("b", 1), ("c", 1)})
    >>> plan = plan_shares({a: "ann", b: "ann", c: None}, {"ann": both, "bob": both})
    >>> plan == {a: "ann", b: "ann", c: "bob"}
    True
    """
    shares = _Shares(workers)
    waiting = []
    for key in sorted(owners):
        owner = owners[key]
        if owner is not None and key.of_version in workers.get(owner, ()):
            shares.give(key, owner)
        elif owner is None or owner in workers:
            waiting.append(key)
    for key in waiting:
        if knowing := shares.knowing(key.of_version):
            shares.give(key, min(knowing, key=lambda w: shares.weight(w, key.of_version)))
    for version in sorted({key.of_version for key in shares.whose}):
        shares.spread(version)
    while shares.even_out():
        pass
    return shares.whose


class _Shares:
    def __init__(self, workers: Mapping[str, frozenset[Version]]) -> None:
        self._workers = workers
        self._loads: Counter[str] = Counter(dict.fromkeys(workers, 0))
        self._held: defaultdict[tuple[str, Version], set[SegmentKey]] = defaultdict(set)
        self.whose: dict[SegmentKey, str] = {}

    def give(self, key: SegmentKey, worker: str) -> None:
        before = self.whose.get(key)
        if before is not None:
            self._held[before, key.of_version].discard(key)
            self._loads[before] -= 1
        self.whose[key] = worker
        self._held[worker, key.of_version].add(key)
        self._loads[worker] += 1

    def knowing(self, version: Version) -> list[str]:
        return sorted(worker for worker, known in self._workers.items() if version in known)

    def weight(self, worker: str, version: Version) -> tuple[int, int, str]:
        """Return by what workers compare: first by how much of the version they have."""
        return self._count(worker, version), self._loads[worker], worker

    def spread(self, version: Version) -> None:
        """Move segments of one version until nobody has two more than another."""
        knowing = self.knowing(version)
        while knowing:
            least = min(knowing, key=lambda w: self.weight(w, version))
            most = max(knowing, key=lambda w: self.weight(w, version))
            if self._count(most, version) - self._count(least, version) <= 1:
                return
            self._move(version, most, least)

    def even_out(self) -> bool:
        """Move one segment from who has much in all to who has little; tell whether any was.

        Only a version of which the other has less, so that it stays spread.
        """
        by_load = sorted(self._workers, key=lambda worker: (self._loads[worker], worker))
        for most in reversed(by_load):
            for least in by_load:
                if self._loads[most] - self._loads[least] <= 1:
                    break
                version = self._movable(most, least)
                if version is not None:
                    self._move(version, most, least)
                    return True
        return False

    def _movable(self, most: str, least: str) -> Version | None:
        shared: Iterable[Version] = sorted(self._workers[most] & self._workers[least])
        more = (v for v in shared if self._count(most, v) > self._count(least, v))
        return next(more, None)

    def _move(self, version: Version, most: str, least: str) -> None:
        self.give(max(self._held[most, version]), least)

    def _count(self, worker: str, version: Version) -> int:
        return len(self._held[worker, version])
