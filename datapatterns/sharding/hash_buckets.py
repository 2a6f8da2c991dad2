"""Hash placement: a fixed number of buckets, filled evenly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from datapatterns.errors import BucketCountError
from datapatterns.sharding.postgres_hash import partition_hash_of_bytes, partition_hash_of_int
from datapatterns.sharding.strategy import Key, KeyOperator


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

    buckets: int = 1024

    def __post_init__(self) -> None:
        if self.buckets < 1 or self.buckets.bit_count() != 1:
            raise BucketCountError(self.buckets)

    def bucket(self, key: Key) -> int:
        """Return the bucket that holds ``key``.

        Raises:
            ValueError: ``key`` is an integer that no ``bigint`` can hold.
        """
        match key:
            case int():
                return _of_int(key) & (self.buckets - 1)
            case str():
                return _of_bytes(key.encode()) & (self.buckets - 1)
            case UUID():
                return _of_bytes(key.bytes) & (self.buckets - 1)

    def buckets_for(self, operator: KeyOperator, value: Key | Sequence[Key]) -> frozenset[int]:
        """Return the buckets that can hold a key ``= value``, or ``in`` those values."""
        if operator == "=" and isinstance(value, int | str | UUID):
            return frozenset((self.bucket(value),))
        if operator == "in" and not isinstance(value, int | str | UUID):
            return frozenset(map(self.bucket, value))
        raise TypeError(f"{operator!r} does not go with {type(value).__name__}")


# Traffic repeats its keys, and a look-up costs a thirtieth of the hash.
_of_int = lru_cache(maxsize=1 << 16)(partition_hash_of_int)
_of_bytes = lru_cache(maxsize=1 << 16)(partition_hash_of_bytes)
