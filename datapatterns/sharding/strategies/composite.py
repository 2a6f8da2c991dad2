"""Composite placement: a block of buckets for each region, and a strategy within it."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, TypeAlias, TypeGuard

from sqlalchemy import ColumnElement, and_

from datapatterns.errors import UnroutableKeyError
from datapatterns.sharding.strategies.strategy import Key, KeyOperator, KeyPart, ShardingStrategy
from datapatterns.sql.metadata import DEFAULT_SCHEMA

CompositeKey: TypeAlias = tuple[KeyPart, KeyPart]
"""Such as a region and a tenant."""

CompositeColumns: TypeAlias = tuple[ColumnElement[Any], ColumnElement[Any]]

_PARTS = 2


@dataclass(frozen=True, slots=True)
class Composite:
    """Places keys of two parts: the first decides the block, the second the bucket within it.

    So data of a region can be kept in that region, evenly spread there, and a statement that names
    the first part alone goes to one block. The price: all of both strategies is final once data is
    placed, bounds and lists too, and no key can be pinned.

    >>> from datapatterns.sharding import Hash, ListMap
    >>> Composite(ListMap({"eu": 0, "us": 1}), Hash(buckets=4)).buckets_for_prefix("=", "us")
    frozenset({4, 5, 6, 7})

    Attributes:
        prefix: Places the first part.
        within: Places the second part. Its number of buckets is the size of a block, so it never
            changes.
    """

    kind: ClassVar[str] = "composite"
    key_type: ClassVar[None] = None

    prefix: ShardingStrategy
    within: ShardingStrategy

    @property
    def parts(self) -> tuple[ShardingStrategy, ShardingStrategy]:
        """Return what places each part of a key."""
        return self.prefix, self.within

    @property
    def buckets(self) -> int:
        """Return one more than the highest number of a bucket."""
        return self.prefix.buckets * self.within.buckets

    def bucket(self, key: Key) -> int:
        """Return the bucket that holds ``key``.

        Raises:
            UnroutableKeyError: It has not two parts, or one of the strategies has no place for its
                part.
        """
        first, second = _parts_of(key)
        return self.prefix.bucket(first) * self.within.buckets + self.within.bucket(second)

    def buckets_for(
        self, operator: KeyOperator, value: Key | Sequence[Key]
    ) -> frozenset[int] | None:
        """Return the buckets that can hold a key ``= value``, or ``in`` those values.

        Of other comparisons, which look at the first part first, the block is what is known. A key
        that no bucket holds adds none: no row can have it.

        Raises:
            UnroutableKeyError: A key has not two parts.
        """
        if operator == "in":
            keys: Iterable[Any] = value if isinstance(value, Collection) else ()
            return frozenset[int]().union(*map(self._holding, keys))
        if operator == "=":
            return self._holding(value)
        if operator == "between":
            low, high = map(_parts_of, value)  # type: ignore[arg-type]  # two keys
            return self.buckets_for_prefix("between", (low[0], high[0]))
        # Keys with the same first part may be below and above.
        weak: KeyOperator = "<=" if operator in {"<", "<="} else ">="
        return self.buckets_for_prefix(weak, _parts_of(value)[0])

    def buckets_for_prefix(
        self, operator: KeyOperator, value: KeyPart | Sequence[KeyPart]
    ) -> frozenset[int] | None:
        """Return the buckets that can hold a key whose first part satisfies the comparison."""
        return self.buckets_of_places(self.prefix.buckets_for(operator, value), None)

    def buckets_of_places(
        self, blocks: frozenset[int] | None, places: frozenset[int] | None
    ) -> frozenset[int] | None:
        """Return the buckets of some blocks, at some places within them; None means any.

        As of statements that confine each part by itself.
        """
        if blocks is None and places is None:
            return None
        size = self.within.buckets
        return frozenset(
            block * size + place
            for block, place in product(
                range(self.prefix.buckets) if blocks is None else blocks,
                range(size) if places is None else places,
            )
        )

    def bucket_of(
        self, column: CompositeColumns, *, schema: str = DEFAULT_SCHEMA
    ) -> ColumnElement[int]:
        """Return the SQL expression for the bucket of a row with this shard key."""
        first, second = column
        block = self.prefix.bucket_of(first, schema=schema)
        return block * self.within.buckets + self.within.bucket_of(second, schema=schema)

    def predicate(
        self, column: CompositeColumns, bucket: int, *, schema: str = DEFAULT_SCHEMA
    ) -> ColumnElement[bool]:
        """Return the SQL condition that a row with this shard key lies in ``bucket``."""
        first, second = column
        block, place = divmod(bucket, self.within.buckets)
        return and_(
            self.prefix.predicate(first, block, schema=schema),
            self.within.predicate(second, place, schema=schema),
        )

    def _holding(self, key: object) -> frozenset[int]:
        first, second = _parts_of(key)
        found = self.buckets_of_places(
            self.prefix.buckets_for("in", [first]), self.within.buckets_for("in", [second])
        )
        assert found is not None  # single keys are in single buckets
        return found


def _parts_of(key: object) -> CompositeKey:
    if not _is_pair(key):
        raise UnroutableKeyError(key, "it has not two parts, as ('eu', 7) has")
    return key


def _is_pair(key: object) -> TypeGuard[CompositeKey]:
    return isinstance(key, tuple) and len(key) == _PARTS
