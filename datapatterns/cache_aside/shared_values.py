"""Which values several callers may be given at once, and how much memory one takes."""

from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from sys import getsizeof
from types import NoneType, SimpleNamespace
from typing import Any
from uuid import UUID

from msgspec import inspect

_ANYBODYS = SimpleNamespace(frozen=False)  # of attrs, which does not tell
_ATOMS = frozenset(
    {NoneType, bool, int, float, str, bytes, Decimal, UUID, datetime, date, time, timedelta}
)


def is_atom(value: object) -> bool:
    """Return whether nobody can change ``value``, by its own type."""
    return type(value) in _ATOMS


def is_immutable(value_type: object) -> bool:
    """Return whether no value of this type can be changed, nor anything in it.

    Atoms and enums, tuples and frozen sets of such, named tuples, and frozen structs and
    dataclasses whose fields are such. What nothing is known of can be changed.
    """
    try:
        return _is_immutable(inspect.type_info(value_type), ())
    except TypeError:  # a type of the user's own
        return False


def _is_immutable(info: inspect.Type, within: tuple[inspect.Type, ...]) -> bool:
    if any(info is each for each in within):
        return True  # as far as it depends on itself
    within = (*within, info)
    match info:
        case (
            inspect.NoneType() | inspect.BoolType() | inspect.IntType() | inspect.FloatType()
            | inspect.StrType() | inspect.BytesType() | inspect.DecimalType() | inspect.UUIDType()
            | inspect.DateTimeType() | inspect.DateType() | inspect.TimeType()
            | inspect.TimeDeltaType() | inspect.EnumType() | inspect.LiteralType()
        ):  # fmt: skip
            return True
        case inspect.UnionType(types) | inspect.TupleType(types):
            parts = types
        case inspect.VarTupleType(item_type) | inspect.FrozenSetType(item_type):
            parts = (item_type,)
        case inspect.NamedTupleType(fields=fields):
            parts = tuple(field.type for field in fields)
        case inspect.StructType(cls, fields) | inspect.DataclassType(cls, fields):
            if not _is_frozen(cls):
                return False
            parts = tuple(field.type for field in fields)
        case _:
            return False
    return all(_is_immutable(part, within) for part in parts)


def _is_frozen(cls: Any) -> bool:  # noqa: ANN401 -- a class of either kind
    struct = getattr(cls, "__struct_config__", None)
    return bool((struct or getattr(cls, "__dataclass_params__", None) or _ANYBODYS).frozen)


def bytes_of(value: Any) -> int:  # noqa: ANN401 -- whatever is_immutable() or is_atom() allows
    """Return how much memory an immutable value takes; what it shares with others counts, too."""
    size = getsizeof(value)
    if is_atom(value):
        return size
    parts: Iterable[Any] = ()
    if isinstance(value, tuple | frozenset):
        parts = value
    elif names := getattr(value, "__struct_fields__", getattr(value, "__dataclass_fields__", ())):
        parts = (getattr(value, name) for name in names)
        size += getsizeof(getattr(value, "__dict__", None))
    return size + sum(map(bytes_of, parts))
