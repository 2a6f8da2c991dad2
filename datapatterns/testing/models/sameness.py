"""Whether two values are the same, also where ``==`` gives no answer."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import isnan
from typing import Any, Final

_PARAMETERS: Final = "__dataclass_params__"  # which typeshed does not know of


def same(one: Any, other: Any) -> bool:  # noqa: ANN401 -- whatever users take for states and events
    """Return whether two values are equal, or cannot be told apart.

    NaN is itself here; objects of a class without ``__eq__`` are the same if what they hold is;
    tuples with names are not if their classes differ, whatever Python says.

    >>> same([float("nan")], [float("nan")]), float("nan") == float("nan")
    (True, False)
    """
    return _same(one, other, set())


def _same(  # noqa: PLR0911 -- one case after the other
    one: Any,  # noqa: ANN401
    other: Any,  # noqa: ANN401
    compared: set[tuple[int, int]],
) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        both_tuples = isinstance(one, tuple) and isinstance(other, tuple)
        return not both_tuples and bool(one == other)
    if not isinstance(one, tuple | list | dict) and one == other:
        return True
    if (pair := (id(one), id(other))) in compared:
        return True  # a circle; what else it holds decides
    compared.add(pair)
    if isinstance(one, float):
        return isnan(one) and isnan(other)
    parts, others = _parts(one), _parts(other)
    if parts is None or others is None or parts.keys() != others.keys():
        return False
    return all(_same(part, others[name], compared) for name, part in parts.items())


def _parts(value: Any) -> Mapping[Any, Any] | None:  # noqa: ANN401
    """Return what ``value`` consists of, if that makes it equal to others."""
    cls: Any = type(value)
    if isinstance(value, dict):
        return value
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if is_dataclass(cls) and getattr(cls, _PARAMETERS).eq:
        return {f.name: getattr(value, f.name) for f in fields(cls) if f.compare}
    if names := getattr(cls, "__struct_fields__", ()):
        return {name: getattr(value, name) for name in names}
    return _held(value) if cls.__eq__ is object.__eq__ else None


def _held(value: object) -> Mapping[Any, Any] | None:
    # What a copy of it would be given, in slots or not.
    try:
        reduced = value.__reduce_ex__(4)
    except TypeError:  # a lock, a connection
        return None
    return None if isinstance(reduced, str) else dict(enumerate([*reduced[1], *reduced[2:3]]))
