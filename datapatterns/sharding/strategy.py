"""What a sharding strategy promises."""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias
from uuid import UUID

Key: TypeAlias = int | str | UUID
"""A shard key: what PostgreSQL calls ``bigint``, ``text`` or ``uuid``."""

KeyOperator: TypeAlias = Literal["=", "in"]
"""How a statement may compare the shard key so that a strategy can use it."""


class ShardingStrategy(Protocol):
    """Places each key in exactly one bucket, without I/O.

    The same key gives the same bucket in every process, and in SQL. Which shard holds a bucket
    is the shard map's business, so that moving data never changes a strategy.
    """

    @property
    def buckets(self) -> int:
        """Return how many buckets there are; they are numbered from 0."""
        ...

    def bucket(self, key: Key) -> int:
        """Return the bucket that holds ``key``."""
        ...

    def buckets_for(self, operator: KeyOperator, value: Key | Sequence[Key]) -> frozenset[int]:
        """Return the buckets that can hold a key that satisfies the comparison."""
        ...
