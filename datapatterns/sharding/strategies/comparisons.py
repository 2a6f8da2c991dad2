"""What a comparison says about single keys."""

from collections.abc import Sequence
from uuid import UUID

from datapatterns.sharding.strategies.strategy import Key, KeyOperator

_LISTED_MAX = 64


def listed_keys(operator: KeyOperator, value: Key | Sequence[Key]) -> tuple[Key, ...] | None:
    """Return the keys that satisfy a comparison, None if they are too many to be listed.

    Raises:
        TypeError: The operator does not go with the value.
    """
    if operator == "in":
        return _several(operator, value)
    if operator == "between":
        low, high = bounds_of(value)
        if isinstance(low, int) and isinstance(high, int) and high - low < _LISTED_MAX:
            return tuple(range(low, high + 1))
        return None
    one = single(operator, value)
    return (one,) if operator == "=" else None


def single(operator: KeyOperator, value: Key | Sequence[Key]) -> Key:
    """Return the value that is compared with.

    Raises:
        TypeError: There are several.
    """
    if not isinstance(value, int | str | UUID):
        raise TypeError(f"{operator!r} does not go with {type(value).__name__}")
    return value


def bounds_of(value: Key | Sequence[Key]) -> tuple[Key, Key]:
    """Return the two values of a ``between``.

    Raises:
        TypeError: There are not two, or not of one type.
    """
    both = _several("between", value)
    if len(both) != 2 or type(both[0]) is not type(both[1]):  # noqa: PLR2004 -- low and high
        raise TypeError("'between' needs two keys of one type")
    return both[0], both[1]


def _several(operator: KeyOperator, value: Key | Sequence[Key]) -> tuple[Key, ...]:
    if isinstance(value, int | str | UUID):
        raise TypeError(f"{operator!r} does not go with {type(value).__name__}")
    return tuple(value)
