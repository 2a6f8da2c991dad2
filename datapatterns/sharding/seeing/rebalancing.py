"""Plan which buckets should move, so that no shard is much fuller than others: pure, moves nothing.

What has to move goes first: off shards that are drained. Then, step by step, the bucket from a full
shard to an empty one that lowers the fuller of the two most. Each step lowers it, so it ends.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from datapatterns.errors import SettingsError

_NOTHING = 1e-12


@dataclass(frozen=True, slots=True)
class BucketMove:
    """One bucket that should lie elsewhere.

    Attributes:
        bucket: Which.
        source: The shard that owns it.
        target: The shard that should.
        cost: What it weighs, in the plan's unit: rows, bytes, or load.
    """

    bucket: int
    source: str
    target: str
    cost: float


def plan_moves(  # noqa: PLR0913 -- what a plan depends on
    placement: Mapping[int, str],
    costs: Mapping[int, float],
    weights: Mapping[str, float],
    *,
    draining: Collection[str] = (),
    left_alone: Collection[str] = (),
    threshold: float = 0.1,
    min_gain: float = 0.3,
    max_moves: int | None = None,
) -> list[BucketMove]:
    """Return the moves after which the shards are evenly used, each bucket at most once.

    Args:
        placement: The shard of each bucket.
        costs: What each bucket weighs: rows, bytes, load, or a mix of them.
        weights: The shards, and how large each is compared with others.
        draining: The shards that are to be emptied.
        left_alone: The shards that keep what they have and get nothing.
        threshold: How far from the mean a shard may be, as a share of the mean.
        min_gain: The least by which a move must even out, as a share of what it moves.
        max_moves: At most so many besides those from draining shards.

    Raises:
        SettingsError: Every shard is draining, a weight is none, or a shard is not among them.
    """
    planning = _Planning(placement, costs, weights, draining, left_alone)
    planning.drain()
    mean = planning.mean()
    allowed = len(placement) * len(weights) if max_moves is None else max_moves
    while allowed and planning.step(mean, threshold, min_gain):
        allowed -= 1
    return planning.moves()


def in_rounds(moves: Sequence[BucketMove], *, at_once: int) -> list[list[BucketMove]]:
    """Return the moves in rounds: in none does a shard take part twice; the largest go first.

    Raises:
        ValueError: ``at_once`` is no positive number.
    """
    if at_once < 1:
        raise ValueError(f"{at_once} moves at once never end; allow at least one")
    left = sorted(moves, key=lambda move: (-move.cost, move.bucket))
    rounds: list[list[BucketMove]] = []
    while left:
        busy: set[str] = set()
        now: list[BucketMove] = []
        for move in left:
            if len(now) < at_once and busy.isdisjoint((move.source, move.target)):
                now.append(move)
                busy |= {move.source, move.target}
        rounds.append(now)
        left = [move for move in left if move not in now]
    return rounds


class _Planning:
    """Where the buckets are after the moves so far."""

    def __init__(
        self,
        placement: Mapping[int, str],
        costs: Mapping[int, float],
        weights: Mapping[str, float],
        draining: Collection[str],
        left_alone: Collection[str],
    ) -> None:
        self._before = placement
        self._costs = costs
        self._weights = weights
        self._draining = {*draining}
        self._receivers = sorted(weights.keys() - {*draining, *left_alone})
        if unknown := ({*placement.values()} | {*draining}) - weights.keys():
            raise SettingsError("weights", f"there is no weight for {sorted(unknown)}; give one")
        if not self._receivers:
            raise SettingsError(
                "draining", "every shard is to be emptied, or left alone; leave one, or add one"
            )
        if not all(weight > 0 for weight in weights.values()):
            raise SettingsError("weights", "a shard's weight is a positive number")
        self._on: dict[str, dict[int, float]] = {shard: {} for shard in weights}
        for bucket, shard in sorted(placement.items()):
            self._on[shard][bucket] = costs.get(bucket, 0)
        self._total = {shard: sum(held.values()) for shard, held in self._on.items()}

    def drain(self) -> None:
        """Move what cannot stay, the largest first, each to the shard that is used least."""
        leaving = [
            (-cost, bucket, shard)
            for shard, held in self._on.items()
            if shard in self._draining
            for bucket, cost in held.items()
        ]
        for cost, bucket, shard in sorted(leaving):
            # Of shards that are used alike, the one with the fewest buckets: empty ones weigh none.
            target = min(
                self._receivers,
                key=lambda each: (self._used(each, -cost), len(self._on[each]), each),
            )
            self._go(bucket, shard, target)

    def mean(self) -> float:
        """Return how much a shard of weight 1 would hold if all were used alike."""
        held = sum(self._total[each] for each in self._receivers)
        return held / sum(self._weights[each] for each in self._receivers)

    def step(self, mean: float, threshold: float, min_gain: float) -> bool:
        """Make the best move from the fullest shard that has one; return whether there was any."""
        for source, target in self._pairs(mean, threshold):
            best = max(self._gains(source, target, min_gain), default=None)
            if best is not None:
                self._go(-best[2], source, target)
                return True
        return False

    def moves(self) -> list[BucketMove]:
        """Return what differs from the beginning: by however many steps, a bucket moves once."""
        after = {bucket: shard for shard, held in self._on.items() for bucket in held}
        return [
            BucketMove(bucket, source, after[bucket], self._costs.get(bucket, 0))
            for bucket, source in sorted(self._before.items())
            if after[bucket] != source
        ]

    def _pairs(self, mean: float, threshold: float) -> Iterator[tuple[str, str]]:
        """Yield a full shard and an empty one, the most uneven first."""
        by_use = sorted(self._receivers, key=lambda shard: (self._used(shard), shard))
        for source in reversed(by_use):
            for target in by_use:
                is_full = self._used(source) > mean * (1 + threshold)
                is_empty = self._used(target) < mean * (1 - threshold)
                if self._used(target) >= self._used(source) or not (is_full or is_empty):
                    break
                yield source, target

    def _gains(
        self, source: str, target: str, min_gain: float
    ) -> Iterator[tuple[float, float, int]]:
        """Yield by how much each bucket would lower the fuller of the two, the cheapest last."""
        for bucket, cost in self._on[source].items():
            if cost == 0:
                continue
            fuller = max(self._used(source, -cost), self._used(target, cost))
            gain = self._used(source) - fuller
            if gain > _NOTHING and gain * self._weights[source] / cost >= min_gain:
                yield gain, -cost, -bucket

    def _used(self, shard: str, more: float = 0) -> float:
        return (self._total[shard] + more) / self._weights[shard]

    def _go(self, bucket: int, source: str, target: str) -> None:
        cost = self._on[source].pop(bucket)
        self._on[target][bucket] = cost
        self._total[source] -= cost
        self._total[target] += cost
