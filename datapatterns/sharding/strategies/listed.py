"""List placement: each value was given its bucket."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, Integer, case, false, null, type_coerce

from datapatterns.errors import UnroutableKeyError
from datapatterns.sharding.strategies.comparisons import listed_keys
from datapatterns.sharding.strategies.strategy import Key, KeyOperator, KeyPart
from datapatterns.sql.metadata import DEFAULT_SCHEMA


@dataclass(frozen=True, slots=True)
class ListMap:
    """Places keys that are few and known: countries, markets, stores.

    >>> ListMap({"de": 0, "at": 0, "fr": 1}).bucket("at")
    0

    Attributes:
        entries: The keys and their buckets, by bucket.
        default: The bucket of all other keys. Without one they are refused: a key that somebody
            forgot must not end up just anywhere.
    """

    kind: ClassVar[str] = "list"

    entries: tuple[tuple[KeyPart, int], ...]
    default: int | None = None
    _places: Mapping[Key, int] = field(repr=False, compare=False, default_factory=dict)

    def __init__(self, places: Mapping[KeyPart, int], default: int | None = None) -> None:
        entries = tuple(sorted(places.items(), key=lambda entry: (entry[1], str(entry[0]))))
        if not entries and default is None:
            raise ValueError("a list without keys has no buckets; name some, or a default")
        if len({type(key) for key, _ in entries}) > 1:
            raise ValueError("the keys of a list are integers, texts or UUIDs, all of a kind")
        if min((*places.values(), default or 0)) < 0:
            raise ValueError("buckets are numbered from 0")
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "default", default)
        object.__setattr__(self, "_places", dict[Key, int](entries))

    @property
    def key_type(self) -> type[KeyPart] | None:
        """Return the type of the listed keys; None if there are none."""
        return type(self.entries[0][0]) if self.entries else None

    @property
    def buckets(self) -> int:
        """Return one more than the highest number of a bucket."""
        return max((*self._places.values(), self.default or 0)) + 1

    def bucket(self, key: Key) -> int:
        """Return the bucket that holds ``key``.

        Raises:
            UnroutableKeyError: It is not listed, and there is no default.
        """
        found = self._places.get(key, self.default)
        if found is None:
            raise UnroutableKeyError(key, "it is not in the list; add it, or declare a default")
        return found

    def buckets_for(
        self, operator: KeyOperator, value: Key | Sequence[Key]
    ) -> frozenset[int] | None:
        """Return the buckets that can hold a key that satisfies the comparison; None if any.

        A key that no bucket holds adds none: no row can have it.
        """
        keys = listed_keys(operator, value)
        if keys is None:
            return None
        found = (self._places.get(key, self.default) for key in keys)
        return frozenset(bucket for bucket in found if bucket is not None)

    def bucket_of(
        self,
        column: ColumnElement[Any],
        *,
        schema: str = DEFAULT_SCHEMA,  # noqa: ARG002 -- as all strategies
    ) -> ColumnElement[int]:
        """Return the SQL expression for the bucket of a row with this shard key."""
        other = null() if self.default is None else self.default
        if not self.entries:
            return type_coerce(other, Integer)
        return case(*((column == key, bucket) for key, bucket in self.entries), else_=other)

    def predicate(
        self,
        column: ColumnElement[Any],
        bucket: int,
        *,
        schema: str = DEFAULT_SCHEMA,  # noqa: ARG002 -- as all strategies
    ) -> ColumnElement[bool]:
        """Return the SQL condition that a row with this shard key lies in ``bucket``."""
        if bucket == self.default:
            return none_of(column, [key for key, place in self.entries if place != bucket])
        return one_of(column, [key for key, place in self.entries if place == bucket])


def one_of(column: ColumnElement[Any], keys: Iterable[Key]) -> ColumnElement[bool]:
    """Return the condition that ``column`` is one of ``keys``."""
    listed = [*keys]
    return column.in_(listed) if listed else false()


def none_of(column: ColumnElement[Any], keys: Iterable[Key]) -> ColumnElement[bool]:
    """Return the condition that ``column`` is none of ``keys``."""
    return column.not_in([*keys])
