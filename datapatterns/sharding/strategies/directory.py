"""Directory placement: single keys have a bucket of their own choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, and_, case, false, or_

from datapatterns.errors import UnroutableKeyError
from datapatterns.sharding.strategies.comparisons import listed_keys
from datapatterns.sharding.strategies.hash_buckets import Hash
from datapatterns.sharding.strategies.listed import none_of, one_of
from datapatterns.sharding.strategies.strategy import (
    Key,
    KeyOperator,
    KeyPart,
    ShardingStrategy,
)
from datapatterns.sql.metadata import DEFAULT_SCHEMA


@dataclass(frozen=True, slots=True)
class Directory:
    """Places keys as another strategy does, but for those that were put somewhere by name.

    That is how a hot tenant gets a bucket for itself: it is pinned to a new one, and nothing moves
    until that bucket is moved. The price: each pin is held by every router, so hundreds are fine,
    millions are not.

    >>> tenants = Directory(Hash(buckets=8)).assign("acme", 8)
    >>> tenants.bucket("acme"), tenants.bucket("globex") < 8
    (8, True)

    Attributes:
        default: Where all other keys go.
        entries: The keys that were assigned, and their buckets, by bucket.
    """

    kind: ClassVar[str] = "directory"

    default: ShardingStrategy = field(default_factory=Hash)
    entries: tuple[tuple[KeyPart, int], ...] = ()
    _places: Mapping[Key, int] = field(repr=False, compare=False, default_factory=dict)

    def __init__(
        self, default: ShardingStrategy | None = None, assigned: Mapping[KeyPart, int] | None = None
    ) -> None:
        places = dict(assigned or {})
        types = {type(key) for key in places} | {(default or Hash()).key_type or type(None)}
        if len(types - {type(None)}) > 1:
            raise ValueError("the keys of a directory are integers, texts or UUIDs, all of a kind")
        if min(places.values(), default=0) < 0:
            raise ValueError("buckets are numbered from 0")
        entries = tuple(sorted(places.items(), key=lambda entry: (entry[1], str(entry[0]))))
        object.__setattr__(self, "default", Hash() if default is None else default)
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "_places", dict[Key, int](entries))

    @property
    def key_type(self) -> type[KeyPart] | None:
        """Return the type of the assigned keys, else of the other strategy's; None if any."""
        return type(self.entries[0][0]) if self.entries else self.default.key_type

    @property
    def buckets(self) -> int:
        """Return one more than the highest number of a bucket."""
        return max(self.default.buckets, max(self._places.values(), default=0) + 1)

    def bucket(self, key: Key) -> int:
        """Return the bucket that holds ``key``.

        Raises:
            UnroutableKeyError: It was not assigned, and the other strategy has no place for it.
        """
        found = self._places.get(key)
        return self.default.bucket(key) if found is None else found

    def buckets_for(
        self, operator: KeyOperator, value: Key | Sequence[Key]
    ) -> frozenset[int] | None:
        """Return the buckets that can hold a key that satisfies the comparison; None if any."""
        keys = listed_keys(operator, value)
        if keys is None:
            others = self.default.buckets_for(operator, value)
            # Whether an assigned key satisfies it is not looked at: one bucket more is no harm.
            return None if others is None else others | {*self._places.values()}
        assigned = {self._places[key] for key in keys if key in self._places}
        left = [key for key in keys if key not in self._places]
        others = self.default.buckets_for("in", left)
        return None if others is None else others | assigned

    def bucket_of(
        self, column: ColumnElement[Any], *, schema: str = DEFAULT_SCHEMA
    ) -> ColumnElement[int]:
        """Return the SQL expression for the bucket of a row with this shard key."""
        other = self.default.bucket_of(column, schema=schema)
        if not self.entries:
            return other
        return case(*((column == key, bucket) for key, bucket in self.entries), else_=other)

    def predicate(
        self, column: ColumnElement[Any], bucket: int, *, schema: str = DEFAULT_SCHEMA
    ) -> ColumnElement[bool]:
        """Return the SQL condition that a row with this shard key lies in ``bucket``."""
        mine = [key for key, place in self.entries if place == bucket]
        # Of the others those matter that would be here: a condition of all would grow with each.
        elsewhere = [
            key for key, place in self.entries if place != bucket and self._home(key) == bucket
        ]
        by_default: ColumnElement[bool] = false()
        if bucket < self.default.buckets:
            by_default = self.default.predicate(column, bucket, schema=schema)
            if elsewhere:
                by_default = and_(by_default, none_of(column, elsewhere))
        return or_(by_default, one_of(column, mine)) if mine else by_default

    def assign(self, key: KeyPart, bucket: int) -> "Directory":
        """Return this with ``key`` in ``bucket``."""
        return Directory(self.default, {**dict(self.entries), key: bucket})

    def release(self, key: KeyPart) -> "Directory":
        """Return this with ``key`` where the other strategy puts it.

        Raises:
            KeyError: It was not assigned.
        """
        left = dict(self.entries)
        del left[key]
        return Directory(self.default, left)

    def _home(self, key: Key) -> int | None:
        try:
            return self.default.bucket(key)
        except UnroutableKeyError:
            return None
