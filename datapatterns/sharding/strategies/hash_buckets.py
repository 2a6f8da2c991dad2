"""Hash placement: a fixed number of buckets, filled evenly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import ColumnElement, Integer

from datapatterns.errors import BucketCountError, UnroutableKeyError
from datapatterns.sharding.strategies.comparisons import listed_keys
from datapatterns.sharding.strategies.postgres_hash import (
    partition_hash_of_bytes,
    partition_hash_of_int,
)
from datapatterns.sharding.strategies.strategy import Key, KeyOperator
from datapatterns.sql.functions import library_function
from datapatterns.sql.metadata import DEFAULT_SCHEMA


@dataclass(frozen=True, slots=True)
class Hash:
    """Spreads keys over a fixed number of buckets by PostgreSQL's own partition hash.

    So a bucket can be computed here, in a query and in a trigger, and all agree; a table that is
    ``PARTITION BY HASH`` with as many partitions lines up. Shards come and go by moving buckets; a
    key never changes its bucket. The price: the number of buckets is final once data is placed,
    and neighbouring keys lie far apart, so a range of keys is on every shard.

    >>> Hash(buckets=1024).bucket(1364)
    613

    Attributes:
        buckets: A power of two, about a hundred for each shard that may ever be needed.
    """

    kind: ClassVar[str] = "hash"
    key_type: ClassVar[None] = None

    buckets: int = 1024

    def __post_init__(self) -> None:
        if self.buckets < 1 or self.buckets.bit_count() != 1:
            raise BucketCountError(self.buckets)

    def bucket(self, key: Key) -> int:
        """Return the bucket that holds ``key``.

        Raises:
            UnroutableKeyError: It has two parts.
            ValueError: ``key`` is an integer that no ``bigint`` can hold.
        """
        match key:
            case int():
                return _of_int(key) & (self.buckets - 1)
            case str():
                return _of_bytes(key.encode()) & (self.buckets - 1)
            case UUID():
                return _of_bytes(key.bytes) & (self.buckets - 1)
            case tuple():
                raise UnroutableKeyError(key, "it has two parts; use Composite")

    def buckets_for(
        self, operator: KeyOperator, value: Key | Sequence[Key]
    ) -> frozenset[int] | None:
        """Return the buckets that can hold a key that satisfies the comparison; None if any."""
        if operator == "=" and not isinstance(value, list | tuple):
            return frozenset((self.bucket(value),))  # type: ignore[arg-type] # a key, as the operator says
        keys = listed_keys(operator, value)
        return None if keys is None else frozenset(map(self.bucket, keys))

    def bucket_of(
        self, column: ColumnElement[Any], *, schema: str = DEFAULT_SCHEMA
    ) -> ColumnElement[int]:
        """Return the SQL expression for the bucket of a row with this shard key."""
        return library_function(schema, "hash_bucket", column, self.buckets, returns=Integer())

    def predicate(
        self, column: ColumnElement[Any], bucket: int, *, schema: str = DEFAULT_SCHEMA
    ) -> ColumnElement[bool]:
        """Return the SQL condition that a row with this shard key lies in ``bucket``."""
        return self.bucket_of(column, schema=schema) == bucket


# Traffic repeats its keys, and a look-up costs a thirtieth of the hash.
_of_int = lru_cache(maxsize=1 << 16)(partition_hash_of_int)
_of_bytes = lru_cache(maxsize=1 << 16)(partition_hash_of_bytes)
