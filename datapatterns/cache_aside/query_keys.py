"""Name the result of a query so that no two queries share a name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import ARRAY, Date, DateTime, Time
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.dialects.postgresql.ranges import AbstractRange
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import NullType, TypeEngine

from datapatterns.errors import UncacheableQueryError

_TIMES: Final = (AbstractRange, Date, DateTime, NullType, Time)
_PLAIN: Final = (bool, int, str, float, Decimal, UUID, timedelta, bytes, Range, type(None))
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class QueryName:
    """What all queries are called that differ in bound values only.

    Attributes:
        cache: The cache's name.
        head: What tells the SQL, the types of its values and those of its result.
        times: The names of values that must not be text, for it might mean another moment each
            time.
    """

    cache: str
    head: bytes
    times: frozenset[str]

    @classmethod
    def of(cls, cache: str, query: SQLCompiler, row_type: object) -> "QueryName":
        """Return the name of a compiled query whose rows are of this type."""
        types = {name: bind.type for bind, name in query.bind_names.items()}
        told = [
            str(query),
            [[name, _kind(of)] for name, of in sorted(types.items())],
            [[str(each.keyname), _kind(each.type)] for each in query._result_columns],  # noqa: SLF001
            repr(row_type),
        ]
        times = frozenset(name for name, of in types.items() if _means_a_time(of))
        return cls(cache, _encode(told), times)

    def entry(self, bound: Mapping[str, Any]) -> str:
        """Return the name of the entry for these bound values.

        Two queries have one name only if they are the same SQL, with equal values of the same
        types in it and the same types in the result.

        Raises:
            UncacheableQueryError: A bound value has no certain name, or means another moment each
                time.
        """
        told = [[name, _told(bound[name], name in self.times)] for name in sorted(bound)]
        digest = blake2b(self.head, digest_size=16)
        digest.update(_encode(told))
        # As an entry is called of whose key only a hash is left: nobody can tell the query by it.
        return f"{self.cache}:#q{digest.hexdigest()}"


def _kind(of: TypeEngine[Any]) -> str:
    return f"{type(of).__module__}.{of!r}"


def _told(value: object, is_time: bool) -> object:  # noqa: FBT001 -- of a value
    """Return ``value`` in texts, of which no two values have the same."""
    if is_time and isinstance(value, str):
        raise UncacheableQueryError(
            "a time given as text, which may mean another one tomorrow",
            "bind a date or a datetime",
        )
    if type(value) in _PLAIN:
        return [type(value).__name__, repr(value)]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    match value:
        case Enum():
            return [name, value.name]
        case list() | tuple() | set() | frozenset():
            return [name, [_told(each, is_time) for each in _ordered(value)]]
        case dict():
            return [name, [[str(key), _told(each, is_time)] for key, each in value.items()]]
        case datetime() | date() | time():
            return [name, value.isoformat()]
        case _ if isinstance(value, _PLAIN):
            return [name, repr(value)]
        case _:
            raise _nameless(name)


def _nameless(name: str) -> UncacheableQueryError:
    return UncacheableQueryError(
        f"a bound value of type {name}, which has no certain name", "bind plain values"
    )


def _ordered(values: Iterable[object]) -> Iterable[object]:
    return sorted(values, key=repr) if isinstance(values, set | frozenset) else values


def _means_a_time(of: TypeEngine[Any]) -> bool:
    inner = of.item_type if isinstance(of, ARRAY) else of
    return isinstance(inner, _TIMES)
