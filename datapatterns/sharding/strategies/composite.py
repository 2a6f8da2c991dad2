"""Composite placement: a block of buckets for each region, and a strategy within it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, and_

from datapatterns.sharding.strategies.strategy import Key, KeyOperator, ShardingStrategy
from datapatterns.sql.metadata import DEFAULT_SCHEMA

CompositeKey: TypeAlias = tuple[Key, Key]
"""Such as a region and a tenant."""

CompositeColumns: TypeAlias = tuple[ColumnElement[Any], ColumnElement[Any]]


@dataclass(frozen=True, slots=True)
class Composite:
    """Places keys of two parts: the first decides the block, the second the bucket within it.

    So data of a region can be kept in that region, evenly spread there, and a statement that names
    the first part alone goes to one block.

    >>> from datapatterns.sharding import Hash, ListMap
    >>> Composite(ListMap({"eu": 0, "us": 1}), Hash(buckets=4)).buckets_for_prefix("=", "us")
    frozenset({4, 5, 6, 7})

    Attributes:
        prefix: Places the first part.
        within: Places the second part. Its number of buckets is the size of a block, so it never
            changes.
    """

    prefix: ShardingStrategy
    within: ShardingStrategy

    @property
    def buckets(self) -> int:
        """Return one more than the highest number of a bucket."""
        return self.prefix.buckets * self.within.buckets

    def bucket(self, key: CompositeKey) -> int:
        """Return the bucket that holds ``key``.

        Raises:
            UnroutableKeyError: One of the strategies has no place for its part.
        """
        first, second = key
        return self.prefix.bucket(first) * self.within.buckets + self.within.bucket(second)

    def buckets_for(
        self, operator: KeyOperator, value: CompositeKey | Sequence[CompositeKey]
    ) -> frozenset[int] | None:
        """Return the buckets that can hold a key ``= value``, or ``in`` those values.

        Of other comparisons, which look at the first part first, the block is what is known.
        """
        if operator == "in":
            return frozenset(self.bucket(key) for key in value)  # type: ignore[arg-type]
        if operator == "=":
            return frozenset((self.bucket(value),))  # type: ignore[arg-type]
        if operator == "between":
            low, high = value
            return self.buckets_for_prefix("between", (low[0], high[0]))  # type: ignore[index]
        # Keys with the same first part may be below and above.
        weak: KeyOperator = "<=" if operator in {"<", "<="} else ">="
        return self.buckets_for_prefix(weak, value[0])

    def buckets_for_prefix(
        self, operator: KeyOperator, value: Key | Sequence[Key]
    ) -> frozenset[int] | None:
        """Return the buckets that can hold a key whose first part satisfies the comparison."""
        blocks = self.prefix.buckets_for(operator, value)
        if blocks is None:
            return None
        size = self.within.buckets
        return frozenset(block * size + place for block in blocks for place in range(size))

    def bucket_of(
        self, columns: CompositeColumns, *, schema: str = DEFAULT_SCHEMA
    ) -> ColumnElement[int]:
        """Return the SQL expression for the bucket of a row with this shard key."""
        first, second = columns
        block = self.prefix.bucket_of(first, schema=schema)
        return block * self.within.buckets + self.within.bucket_of(second, schema=schema)

    def predicate(
        self, columns: CompositeColumns, bucket: int, *, schema: str = DEFAULT_SCHEMA
    ) -> ColumnElement[bool]:
        """Return the SQL condition that a row with this shard key lies in ``bucket``."""
        first, second = columns
        block, place = divmod(bucket, self.within.buckets)
        return and_(
            self.prefix.predicate(first, block, schema=schema),
            self.within.predicate(second, place, schema=schema),
        )
