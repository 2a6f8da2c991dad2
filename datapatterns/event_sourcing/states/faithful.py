"""Whether a state that comes back from a snapshot is the one that went in, to the last type.

``==`` is not enough: 1 equals 1.0 and True, a Counter equals a dict, a time in Berlin equals one at
an offset that summer does not change, and classes may compare what they like. Nor is it enough that
each part is the same: a list that lies in two places of a state comes back as two lists, and the
next event changes one of them.
"""

from collections.abc import Iterator
from datetime import datetime, time
from decimal import Decimal
from typing import Any, Final

from datapatterns.event_sourcing.content.likeness import is_fixed
from datapatterns.event_sourcing.content.shapes import field_names, is_frozen, is_model

_WHOLE_IN_FLOATS: Final = 2**53
_CHANGEABLE: Final = (list, dict, set, bytearray)
_MISSING: Final = object()


class UnfaithfulError(Exception):
    """Says what a load would get wrong, and where, without the data."""


def check_faithful(state: dict[str, Any], copy: dict[str, Any]) -> None:
    """Compare a state, by the names of its parts, with what a load makes of it.

    Raises:
        UnfaithfulError: A load would go on with something else.
    """
    comparing = _Comparing()
    for name, value in state.items():
        comparing.check(value, copy[name], name)


class _Comparing:
    def __init__(self) -> None:
        # With the objects: what is made anew on each look must not get the address of another.
        self._met: dict[int, tuple[str, object]] = {}

    def check(self, value: Any, copy: Any, place: str) -> None:  # noqa: ANN401 -- parts of a state
        self._check_alone(value, place)
        if not _is_like(value, copy):
            raise UnfaithfulError(
                f"has state that JSON would change: {place}; annotate it more precisely"
            )
        for part, copied, where in _parts(value, copy, place):
            self.check(part, copied, where)

    def _check_alone(self, value: object, place: str) -> None:
        if not (isinstance(value, _CHANGEABLE) or is_frozen(type(value)) is False):
            return
        if id(value) in self._met:
            raise UnfaithfulError(
                f"holds one {type(value).__name__} in two places, {self._met[id(value)][0]} and"
                f" {place}, and a load would make two of it; copy it, or keep a key in one of them"
            )
        self._met[id(value)] = place, value


def _parts(value: Any, copy: Any, place: str) -> Iterator[tuple[Any, Any, str]]:  # noqa: ANN401
    if isinstance(value, list | tuple):
        for part, copied in zip(value, copy, strict=True):
            yield part, copied, f"{place}[]"
    elif isinstance(value, dict):
        # In order: what a handler does first may matter. A key is data, so it is not named.
        for (key, part), (key_copied, copied) in zip(value.items(), copy.items(), strict=True):
            yield key, key_copied, f"a key of {place}"
            yield part, copied, f"{place}.*"
    elif isinstance(value, set | frozenset):
        found = {part: part for part in copy}
        for part in value:
            yield part, found.get(part, _MISSING), f"{place}[]"
    else:
        for name in field_names(type(value)):
            one, other = getattr(value, name, _MISSING), getattr(copy, name, _MISSING)
            yield one, other, f"{place}.{name}"


def _is_like(value: Any, copy: Any) -> bool:  # noqa: ANN401 -- parts of a state
    """Return whether two are alike, leaving their parts to be compared."""
    kind = type(value)
    if kind is not type(copy):
        # What begins with 0 and counts cents in whole numbers is often called a float.
        is_whole = kind is int and type(copy) is float and abs(value) <= _WHOLE_IN_FLOATS
        return is_whole and value == copy
    if isinstance(value, list | tuple | dict | set | frozenset):
        return len(value) == len(copy)
    if isinstance(value, datetime | time):
        zones = value.tzinfo, copy.tzinfo
        return value == copy and value.fold == copy.fold and all(map(is_fixed, zones))
    if isinstance(value, Decimal | float):  # 1.10 is 1.1, and -0.0 is 0.0
        return str(value) == str(copy)
    if field_names(kind) and not is_model(kind):  # whatever it says is equal
        return True
    return bool(value == copy)
