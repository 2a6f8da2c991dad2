"""A plan of moves as a value: to print, to cap, to keep in a file, and to run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite

import msgspec

from datapatterns.errors import SettingsError
from datapatterns.sharding.seeing.bars import bar
from datapatterns.sharding.seeing.rebalancing import BucketMove, in_rounds

_CELLS = 30


@dataclass(frozen=True, slots=True)
class RebalancePlan:
    """Which buckets should move, and what that is good for. Moves nothing by itself.

    Iterating over it gives the moves.

    Attributes:
        group: Whose buckets.
        by: What buckets were weighed by, such as ``rows``.
        epoch: That of the map it was made from. A bucket that has moved since stays where it is.
        weights: How large each shard is, compared with others.
        held: What each shard holds before the moves.
        draining: The shards that are to be emptied.
        moves: What should move, each bucket once.
    """

    group: str
    by: str
    epoch: int
    weights: dict[str, float]
    held: dict[str, float]
    draining: tuple[str, ...]
    moves: tuple[BucketMove, ...]

    def __post_init__(self) -> None:
        numbers = [*self.weights.values(), *self.held.values(), *(m.cost for m in self.moves)]
        if not all(isfinite(number) and number >= 0 for number in numbers):
            raise _broken("a weight or cost is no number that counts")
        if not all(self.weights.values()) or {*self.draining} >= self.weights.keys():
            raise _broken("no shard is left, or one weighs nothing")
        named = {*self.held, *self.draining}.union(*((m.source, m.target) for m in self.moves))
        if unknown := named - self.weights.keys():
            raise _broken(f"there is no weight for {sorted(unknown)}")
        if len({move.bucket for move in self.moves}) < len(self.moves):
            raise _broken("a bucket moves twice")
        if any(move.source == move.target or move.bucket < 0 for move in self.moves):
            raise _broken("a bucket moves to where it is, or is none")

    def __iter__(self) -> Iterator[BucketMove]:
        return iter(self.moves)

    def __len__(self) -> int:
        return len(self.moves)

    @property
    def cost(self) -> float:
        """What is moved, in the unit of ``by``."""
        return sum(move.cost for move in self.moves)

    @property
    def held_after(self) -> dict[str, float]:
        """What each shard holds after the moves."""
        after = dict.fromkeys(self.weights, 0.0) | self.held
        for move in self.moves:
            after[move.source] -= move.cost
            after[move.target] += move.cost
        return after

    @property
    def imbalance_before(self) -> float:
        """How full the fullest shard is now, compared with all being used alike: 1 is even."""
        return self._imbalance(self.held)

    @property
    def imbalance_after(self) -> float:
        """How full the fullest shard is after the moves, compared with all being used alike."""
        return self._imbalance(self.held_after)

    def rounds(self, *, at_once: int) -> list[list[BucketMove]]:
        """Return the moves in rounds: in none does a shard take part twice; the largest go first.

        Raises:
            ValueError: ``at_once`` is no positive number.
        """
        return in_rounds(self.moves, at_once=at_once)

    def capped(
        self, *, moves_max: int | None = None, cost_max: float | None = None
    ) -> "RebalancePlan":
        """Return a plan of some of these moves: the largest that keep within both limits.

        Making a plan anew after it has run goes on where this one ends.
        """
        kept: list[BucketMove] = []
        left = float("inf") if cost_max is None else cost_max
        for move in sorted(self.moves, key=lambda move: (-move.cost, move.bucket)):
            if move.cost <= left and (moves_max is None or len(kept) < moves_max):
                kept.append(move)
                left -= move.cost
        return replace(self, moves=tuple(sorted(kept, key=lambda move: move.bucket)))

    def to_json(self) -> str:
        """Return the plan as text for a file; `from_json` reads it."""
        return msgspec.json.format(msgspec.json.encode(self)).decode() + "\n"

    @classmethod
    def from_json(cls, written: str | bytes) -> "RebalancePlan":
        """Return the plan that `to_json` has written.

        Raises:
            SettingsError: This is none, or one that nobody could run.
        """
        try:
            return msgspec.json.decode(written, type=cls, strict=True)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _broken(str(error)) from error

    def __str__(self) -> str:
        before, after = self.imbalance_before, self.imbalance_after
        many = "move" if len(self.moves) == 1 else "moves"
        first = (
            f"{self.group}: {len(self.moves)} {many} of {self.cost:,.0f} {self.by};"
            f" the fullest shard from {before:.2f} to {after:.2f} of the mean"
        )
        held_after = self.held_after
        used = [self._used(held, shard) for held in (self.held, held_after) for shard in held]
        name_cells = max(map(len, self.weights))
        lines = [first]
        for shard in sorted(self.weights):
            is_draining = " (draining)" if shard in self.draining else ""
            for word, held in (("now", self.held), ("then", held_after)):
                drawn = bar(self._used(held, shard), max(used, default=0), cells=_CELLS)
                name = shard if word == "now" else ""
                lines.append(
                    f"  {name:{name_cells}}  {word:4}  {drawn:{_CELLS}}"
                    f"  {held.get(shard, 0):,.0f}{is_draining if word == 'now' else ''}"
                )
        return "\n".join(lines)

    def _imbalance(self, held: Mapping[str, float]) -> float:
        receiving = sum(w for shard, w in self.weights.items() if shard not in self.draining)
        mean = sum(held.values()) / receiving
        return max(self._used(held, shard) for shard in self.weights) / mean if mean else 1.0

    def _used(self, held: Mapping[str, float], shard: str) -> float:
        return held.get(shard, 0) / self.weights[shard]


def _broken(reason: str) -> SettingsError:
    return SettingsError("plan", f"this is no plan that could run: {reason}; make it anew")
