"""Whether an event that is read back says what was said, whatever its classes call equal."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, time, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from datapatterns.event_sourcing.content.shapes import classes_within, field_names, is_model

_MISSING: Final = object()


def unlike_at(value: Any, copy: Any, place: str = "it") -> str | None:  # noqa: ANN401 -- data
    """Return where ``copy`` says something else than ``value``; None if it does not.

    A tuple may come back as a list where a class declares a ``Sequence``, a frozenset as a set, a
    whole number as the same float. Of mappings the answer names no key: those are data.
    """
    if _is_leaf(value):
        return None if _is_same(value, copy) else place
    if not _is_same_kind(value, copy):
        return place
    for part, copied, where in _parts(value, copy, place):
        found = unlike_at(part, copied, where)
        if found is not None:
            return found
    # What a model holds beside its fields is stored nowhere.
    return place if is_model(type(value)) and value != copy else None


@lru_cache(maxsize=1_000)
def tells_all(cls: type[Any]) -> bool:
    """Return whether objects of ``cls`` that are equal say the same.

    Times may not: one in Berlin equals one at an offset, until a day is added to both.
    """
    return not is_model(cls) and _TIMES.isdisjoint(classes_within(cls))


def is_fixed(zone: tzinfo | None) -> bool:
    """Return whether times in this zone have one offset, or none, which is all that JSON holds."""
    try:
        return zone is None or zone.utcoffset(None) is not None
    except Exception:  # noqa: BLE001 -- a zone of anybody's that can only say it of a moment
        return False


def _is_leaf(value: object) -> bool:
    kind = type(value)
    return not (issubclass(kind, _PARTED) or field_names(kind))


_PARTED: Final = (list, tuple, AbstractSet, Mapping)
_TIMES: Final = frozenset({datetime, time})


def _is_same(value: Any, copy: Any) -> bool:  # noqa: ANN401 -- data
    if isinstance(value, Decimal):  # NaN is not equal to itself
        return type(copy) is Decimal and str(value) == str(copy)
    if isinstance(value, datetime | time) and (value.fold or not is_fixed(value.tzinfo)):
        return False
    return bool(value == copy)


def _is_same_kind(value: Any, copy: Any) -> bool:  # noqa: ANN401 -- data
    kind = type(value)
    if field_names(kind):
        return kind is type(copy)
    for kinds in (list, tuple), AbstractSet, Mapping:
        if isinstance(value, kinds):
            return isinstance(copy, kinds) and len(value) == len(copy)
    return False


def _parts(value: Any, copy: Any, place: str) -> Iterator[tuple[Any, Any, str]]:  # noqa: ANN401
    if names := field_names(type(value)):
        for name in names:
            one, other = getattr(value, name, _MISSING), getattr(copy, name, _MISSING)
            yield one, other, name if place == "it" else f"{place}.{name}"
    elif isinstance(value, Mapping):
        keys = {key: key for key in copy}
        for key, part in value.items():
            yield key, keys.get(key, _MISSING), f"a key of {place}"
            yield part, copy.get(key, _MISSING), f"{place}.*"
    elif isinstance(value, AbstractSet):
        found = {part: part for part in copy}
        for part in value:
            yield part, found.get(part, _MISSING), f"{place}[]"
    else:
        for part, copied in zip(value, copy, strict=True):
            yield part, copied, f"{place}[]"
