"""Range placement: neighbouring keys lie together."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    Text,
    Uuid,
    and_,
    cast,
    false,
    func,
    true,
)
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.types import TypeEngine

from datapatterns.errors import RangeBoundError, UnroutableKeyError
from datapatterns.sharding.strategies.comparisons import bounds_of, listed_keys, single
from datapatterns.sharding.strategies.strategy import Key, KeyOperator, KeyPart
from datapatterns.sql.metadata import DEFAULT_SCHEMA

_SQL_TYPES: dict[type[KeyPart], TypeEngine[Any]] = {int: BigInteger(), str: Text(), UUID: Uuid()}


@dataclass(frozen=True, slots=True)
class Range:
    """Cuts the line of all keys in pieces, so that a range of keys is on few shards.

    Text is ordered by code points, as under ``COLLATE "C"``. There can be no gap and no overlap:
    only where pieces begin is stored. Pieces are split and merged without moving a row. The price:
    keys that only grow all go to the last piece.

    >>> Range(["g", "p"]).bucket("milk")
    1

    Attributes:
        bounds: Where each piece but the first begins, ascending.
        numbers: The bucket of each piece, in their order; by default counted from 0.
    """

    kind: ClassVar[str] = "range"

    bounds: tuple[KeyPart, ...] = ()
    numbers: tuple[int, ...] = ()

    def __init__(
        self, bounds: Iterable[KeyPart] = (), numbers: Iterable[int] | None = None
    ) -> None:
        found = tuple(bounds)
        pieces = range(len(found) + 1)
        object.__setattr__(self, "bounds", found)
        object.__setattr__(self, "numbers", tuple(pieces if numbers is None else numbers))
        self._check()

    def _check(self) -> None:
        for bound in self.bounds:
            if type(bound) not in _SQL_TYPES or type(bound) is not type(self.bounds[0]):
                raise RangeBoundError(bound, "bounds are integers, texts or UUIDs, all of a kind")
        for low, high in pairwise(self.bounds):
            if not _is_below(low, high):
                raise RangeBoundError(high, f"it does not lie above {low!r}; bounds ascend")
        if len(self.numbers) != len(self.bounds) + 1 or len({*self.numbers}) != len(self.numbers):
            raise ValueError(f"{len(self.bounds) + 1} pieces need as many different numbers")
        if min(self.numbers) < 0:
            raise ValueError("buckets are numbered from 0")

    @property
    def key_type(self) -> type[KeyPart] | None:
        """Return the type of the bounds; None if there are none."""
        return type(self.bounds[0]) if self.bounds else None

    @property
    def buckets(self) -> int:
        """Return one more than the highest number of a bucket."""
        return max(self.numbers) + 1

    def bucket(self, key: Key) -> int:
        """Return the bucket that holds ``key``.

        Raises:
            UnroutableKeyError: It is not of the bounds' type.
        """
        return self.numbers[bisect_right(self.bounds, self._checked(key))]

    def buckets_for(
        self, operator: KeyOperator, value: Key | Sequence[Key]
    ) -> frozenset[int] | None:
        """Return the buckets that can hold a key that satisfies the comparison."""
        if operator == "between":
            low, high = bounds_of(value)
            first, last = self._place(low), self._place(high)
            return frozenset(self.numbers[first : last + 1])
        if operator in {"=", "in"}:
            return frozenset(map(self.bucket, listed_keys(operator, value) or ()))
        key = single(operator, value)
        if operator in {">", ">="}:
            return frozenset(self.numbers[self._place(key) :])
        # Of what lies below a bound, nothing is in the piece that begins there.
        place = self._place(key) if operator == "<=" else self._place_below(key)
        return frozenset(self.numbers[: place + 1])

    def bucket_of(
        self,
        column: ColumnElement[Any],
        *,
        schema: str = DEFAULT_SCHEMA,  # noqa: ARG002 -- as all strategies
    ) -> ColumnElement[int]:
        """Return the SQL expression for the bucket of a row with this shard key."""
        numbers: ColumnElement[Any] = Grouping(cast([*self.numbers], ARRAY(Integer)))
        if not self.bounds:
            return numbers[1]
        bounds = cast([*self.bounds], ARRAY(_SQL_TYPES[type(self.bounds[0])]))
        # A binary search, as here.
        return numbers[func.width_bucket(self._ordered(column), bounds, type_=Integer) + 1]

    def predicate(
        self,
        column: ColumnElement[Any],
        bucket: int,
        *,
        schema: str = DEFAULT_SCHEMA,  # noqa: ARG002 -- as all strategies
    ) -> ColumnElement[bool]:
        """Return the SQL condition that a row with this shard key lies in ``bucket``."""
        if bucket not in self.numbers:
            return false()
        place, ordered = self.numbers.index(bucket), self._ordered(column)
        low, high = self.bounds[place - 1 : place] if place else (), self.bounds[place : place + 1]
        conditions = [ordered >= bound for bound in low] + [ordered < bound for bound in high]
        return and_(true(), *conditions)

    def split(self, at: KeyPart, *, bucket: int | None = None) -> "Range":
        """Return this with a piece cut in two; its upper part, from ``at``, is another bucket.

        Args:
            at: Where the new piece begins.
            bucket: The number of the new bucket; by default the next.

        Raises:
            RangeBoundError: A piece begins there already.
            UnroutableKeyError: It is not of the bounds' type.
        """
        place = self._place(at)
        if at in self.bounds:
            raise RangeBoundError(at, "a piece begins there already; choose a key inside of one")
        number = self.buckets if bucket is None else bucket
        return Range(
            (*self.bounds[:place], at, *self.bounds[place:]),
            (*self.numbers[: place + 1], number, *self.numbers[place + 1 :]),
        )

    def merge(self, at: KeyPart) -> "Range":
        """Return this with the piece that begins at ``at`` made one with that below it.

        Raises:
            RangeBoundError: No piece begins there.
        """
        if at not in self.bounds:
            raise RangeBoundError(at, f"no piece begins there; those begin at {[*self.bounds]}")
        place = self.bounds.index(at)
        return Range(
            (*self.bounds[:place], *self.bounds[place + 1 :]),
            (*self.numbers[: place + 1], *self.numbers[place + 2 :]),
        )

    def _checked(self, key: Key) -> KeyPart:
        if self.bounds and not isinstance(key, type(self.bounds[0])):
            wanted = type(self.bounds[0]).__name__
            raise UnroutableKeyError(key, f"the bounds are {wanted}; convert it")
        if isinstance(key, tuple):
            raise UnroutableKeyError(key, "it has two parts; use Composite")
        return key

    def _place(self, key: Key) -> int:
        return bisect_right(self.bounds, self._checked(key))

    def _place_below(self, key: Key) -> int:
        return bisect_left(self.bounds, self._checked(key))

    def _ordered(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return column.collate("C") if self.bounds and isinstance(self.bounds[0], str) else column


def _is_below(low: KeyPart, high: KeyPart) -> bool:
    return low < high  # type: ignore[operator]  # they are of one type
