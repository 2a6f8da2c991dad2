"""Rows as values: of which types they come back, and how they are made."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import GenericAlias
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Row, TypeDecorator
from sqlalchemy.types import TypeEngine

from datapatterns.cache_aside.codec import Codec
from datapatterns.errors import UncacheableValueError

_NUMBERS = (int, float, Decimal)
_AS_THEY_ARE = (str, bytes, bool, datetime, date, time, timedelta, UUID, list)
Number: TypeAlias = int | float | Decimal | None


def row_type_of(types: Sequence[TypeEngine[Any]]) -> object:
    """Return the type of a row with columns of these types, a tuple."""
    return GenericAlias(tuple, tuple(map(_type_of, types))) if types else Any


def is_certain(types: Iterable[TypeEngine[Any]]) -> bool:
    """Return whether values of these types come back as what they were."""
    return not any(isinstance(each, TypeDecorator) or _type_of(each) is Any for each in types)


def as_tuples(rows: Iterable[Row[*tuple[Any, ...]]]) -> list[Any]:
    """Return rows as plain tuples."""
    return [tuple(row) for row in rows]


def as_objects(rows: Iterable[Row[*tuple[Any, ...]]], value_type: Any) -> list[Any]:  # noqa: ANN401
    """Return rows as objects, made with the names of the columns."""
    return [value_type(**row._mapping) for row in rows]  # noqa: SLF001 -- public, as SQLAlchemy says


def refuse_strangers(codec: Codec[list[Any]], rows: list[Any]) -> None:
    """Refuse rows that would come back as something else.

    Raises:
        UncacheableValueError: They would; a type for them has to be named.
    """
    returned, _ = codec.canonical(rows)
    # What is not a number is unequal to itself.
    if returned != rows and repr(returned) != repr(rows):
        raise UncacheableValueError("list", "rows would come back as plain data; give a value_type")


def _type_of(declared: TypeEngine[Any]) -> Any:  # noqa: ANN401
    try:
        python_type = declared.python_type
    except NotImplementedError:
        return Any
    if python_type in _NUMBERS:
        # The sum of integers may be a Decimal, whatever SQLAlchemy takes it for.
        return Number
    if python_type in _AS_THEY_ARE or issubclass(python_type, Enum):
        return python_type | None
    return Any
