"""Modulo placement, the textbook's: to measure others against."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import ColumnElement

from datapatterns.errors import BucketCountError, UnroutableKeyError
from datapatterns.sharding.strategies.comparisons import listed_keys
from datapatterns.sharding.strategies.strategy import Key, KeyOperator, KeyPart
from datapatterns.sql.metadata import DEFAULT_SCHEMA


@dataclass(frozen=True, slots=True)
class Modulo:
    """Places a number by its remainder: as many buckets as shards.

    Easy to see through, and evenly filled by numbers that were counted up. The price: with another
    number of buckets nearly every key has another bucket, so it can never grow; use `Hash`, whose
    buckets move one by one.

    >>> Modulo(5).bucket(13)
    3

    Attributes:
        buckets: The divisor.
    """

    kind: ClassVar[str] = "modulo"
    key_type: ClassVar[type[KeyPart]] = int

    buckets: int

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise BucketCountError(self.buckets, needed="use a positive number")

    def bucket(self, key: Key) -> int:
        """Return the bucket that holds ``key``.

        Raises:
            UnroutableKeyError: It is no number.
        """
        if not isinstance(key, int):
            raise UnroutableKeyError(key, "only numbers have a remainder; use Hash")
        return key % self.buckets

    def buckets_for(
        self, operator: KeyOperator, value: Key | Sequence[Key]
    ) -> frozenset[int] | None:
        """Return the buckets that can hold a key that satisfies the comparison; None if any."""
        keys = listed_keys(operator, value)
        return None if keys is None else frozenset(map(self.bucket, keys))

    def bucket_of(
        self,
        column: ColumnElement[Any],
        *,
        schema: str = DEFAULT_SCHEMA,  # noqa: ARG002 -- as all strategies
    ) -> ColumnElement[int]:
        """Return the SQL expression for the bucket of a row with this shard key."""
        # In SQL the remainder has the sign of what is divided.
        return (column % self.buckets + self.buckets) % self.buckets

    def predicate(
        self, column: ColumnElement[Any], bucket: int, *, schema: str = DEFAULT_SCHEMA
    ) -> ColumnElement[bool]:
        """Return the SQL condition that a row with this shard key lies in ``bucket``."""
        return self.bucket_of(column, schema=schema) == bucket
