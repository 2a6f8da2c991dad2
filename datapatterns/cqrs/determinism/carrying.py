"""Values on their way to another process: bytes that run nothing of theirs when they are read.

Each comes back as what it was, to its type, or is refused by the name of its class. What looks
for classes finds those alone that are loaded, and imports none.
"""

import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy.dialects.postgresql import Range

from datapatterns.event_sourcing.content.payload import misfit
from datapatterns.event_sourcing.content.shapes import (
    Decoder,
    decoder_of,
    encoder_of,
    field_names,
)
from datapatterns.event_sourcing.states.faithful import UnfaithfulError, check_faithful

_LIKE_ITSELF: Final = frozenset({type(None), bool, float, str, bytes})
_INTEGERS: Final = range(-(2**63), 2**64)
"""What MessagePack writes by itself."""


class UncarriedError(Exception):
    """Says what cannot be carried, without the data."""


def carry(value: Any) -> Any:  # noqa: ANN401 -- whatever rows hold
    """Return what MessagePack can hold, from which `given_back` makes the same value.

    That is the value itself, or a list of the name of its kind and what tells it from others.

    Raises:
        RecursionError: It is nested too deep, or within itself.
        UncarriedError: It would come back as something else, or cannot be told.
    """
    cls = type(value)
    if cls in _LIKE_ITSELF or (cls is int and value in _INTEGERS):
        return value
    kind = _KIND_OF.get(cls)
    if kind is None and isinstance(value, Enum):
        kind = _ENUM
    if kind is None and field_names(cls):
        kind = _OBJECT
    if kind is None:
        raise UncarriedError(
            f"a {cls.__module__}.{cls.__qualname__} cannot be carried to another process as it is"
        )
    return [kind.name, kind.tell(value)]


def given_back(carried: Any) -> Any:  # noqa: ANN401 -- as above
    """Return the value of which `carry` has made this.

    Raises:
        Exception: `carry` has not made it, or not of classes that are loaded here.
    """
    if type(carried) is not list:
        return carried
    name, told = carried
    return _KINDS[name].make(told)


def named(cls: type) -> list[str]:
    """Return the module and the name in it by which a class is found, here and elsewhere.

    Raises:
        UncarriedError: Another class is found so, or none; or it is of the script that was run.
    """
    words = [cls.__module__, cls.__qualname__]
    try:
        found = class_named(words) if cls.__module__ != "__main__" else None
    except (AttributeError, LookupError):
        found = None
    if found is not cls:
        raise UncarriedError(
            f"{'.'.join(words)} cannot be imported by its name; declare it at the top of a module"
        )
    return words


def class_named(words: list[str]) -> Any:  # noqa: ANN401 -- a class
    """Return the class that is loaded under a module and a name in it.

    Raises:
        AttributeError: The module has no such name.
        LookupError: The module is not loaded.
        TypeError: It is no class.
    """
    module, name = words
    found = attrgetter(name)(sys.modules[module])
    if not isinstance(found, type):
        raise TypeError(f"{module}.{name} is no class")
    return found


@lru_cache(maxsize=1_000)
def decoder(cls: type[Any]) -> Decoder:
    """Return what makes objects of a class with fields from JSON."""
    return decoder_of(cls)


def object_as_json(value: Any) -> bytes:  # noqa: ANN401 -- of a class with fields
    """Return an object of a class with fields as JSON, from which `decoder` makes the same.

    Raises:
        UncarriedError: It would make another.
    """
    cls: Any = type(value)
    encoded = encoder_of(cls)(value)
    try:
        check_faithful({"it": value}, {"it": decoder(cls).decode(encoded)})
    except UnfaithfulError as error:
        raise UncarriedError(f"a {cls.__module__}.{cls.__qualname__} {error}") from None
    except msgspec.DecodeError as error:
        raise UncarriedError(
            f"a {cls.__module__}.{cls.__qualname__} cannot be read back: {misfit(error)}"
        ) from None
    return encoded


def _tell_enum(value: Enum) -> object:
    cls = type(value)
    if cls.__members__.get(value.name) is value:
        return [*named(cls), value.name]
    if not isinstance(value, Flag):
        raise UncarriedError(f"a {cls.__module__}.{cls.__qualname__} is none of its members")
    return [*named(cls), value.value]


def _make_enum(told: list[Any]) -> Enum:
    *words, which = told
    cls = class_named(words)
    if not issubclass(cls, Enum):
        raise TypeError(f"{'.'.join(words)} is no enum")
    found: Enum = cls[which] if isinstance(which, str) else cls(which)
    return found


def _make_object(told: list[Any]) -> object:
    *words, encoded = told
    return decoder(class_named(words)).decode(encoded)


def _tell_timezone(zone: timezone) -> object:
    offset = zone.utcoffset(None)
    if repr(zone) != repr(timezone(offset)) and zone is not UTC:
        raise UncarriedError("a time zone with a name of its own cannot be carried; use ZoneInfo")
    return _tell_timedelta(offset)


def _tell_zone_info(zone: ZoneInfo) -> object:
    if zone.key is None:
        raise UncarriedError("a ZoneInfo without a key cannot be carried; make it by its key")
    return zone.key


def _tell_timedelta(length: timedelta) -> list[int]:
    return [length.days, length.seconds, length.microseconds]


def _tell_time(value: datetime | time) -> object:
    return [value.replace(tzinfo=None).isoformat(), value.fold, carry(value.tzinfo)]


def _time_made_by(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    def make(told: Any) -> Any:  # noqa: ANN401 -- a datetime or a time
        text, fold, zone = told
        return read(text).replace(fold=fold, tzinfo=given_back(zone))

    return make


def _tell_each(values: Any) -> list[Any]:  # noqa: ANN401 -- any collection
    return [carry(one) for one in values]


def _each_made_into(cls: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda told: cls(map(given_back, told))


def _tell_range(value: "Range[Any]") -> object:
    return [carry(value.lower), carry(value.upper), value.bounds, value.empty]


def _make_range(told: Any) -> "Range[Any]":  # noqa: ANN401 -- as told
    lower, upper, bounds, empty = told
    return Range(given_back(lower), given_back(upper), bounds=bounds, empty=empty)


class _Kind(NamedTuple):
    """How values of one class, of exactly this one, are told and made."""

    name: str
    cls: type
    tell: Callable[[Any], object]
    make: Callable[[Any], object]


_ENUM: Final = _Kind("enum", Enum, _tell_enum, _make_enum)
_OBJECT: Final = _Kind(
    "object", object, lambda value: [*named(type(value)), object_as_json(value)], _make_object
)
_OF_ONE_CLASS: Final = (
    _Kind("int", int, hex, lambda told: int(told, 16)),  # as digits, Python refuses long ones
    _Kind("Decimal", Decimal, str, Decimal),
    _Kind("UUID", UUID, lambda value: value.bytes, lambda told: UUID(bytes=told)),
    _Kind("bytearray", bytearray, bytes, bytearray),
    _Kind("date", date, date.isoformat, date.fromisoformat),
    _Kind("datetime", datetime, _tell_time, _time_made_by(datetime.fromisoformat)),
    _Kind("time", time, _tell_time, _time_made_by(time.fromisoformat)),
    _Kind("timedelta", timedelta, _tell_timedelta, lambda told: timedelta(*told)),
    _Kind("timezone", timezone, _tell_timezone, lambda told: timezone(timedelta(*told))),
    _Kind("ZoneInfo", ZoneInfo, _tell_zone_info, ZoneInfo),
    _Kind("list", list, _tell_each, _each_made_into(list)),
    _Kind("tuple", tuple, _tell_each, _each_made_into(tuple)),
    _Kind("set", set, _tell_each, _each_made_into(set)),
    _Kind("frozenset", frozenset, _tell_each, _each_made_into(frozenset)),
    _Kind("dict", dict, lambda value: _tell_each(value.items()), _each_made_into(dict)),
    _Kind("Range", Range, _tell_range, _make_range),
    *(
        _Kind(cls.__name__, cls, str, cls)
        for cls in (
            IPv4Address,
            IPv4Interface,
            IPv4Network,
            IPv6Address,
            IPv6Interface,
            IPv6Network,
        )
    ),
)
_KIND_OF: Final = {kind.cls: kind for kind in _OF_ONE_CLASS}
_KINDS: Final = {kind.name: kind for kind in (*_OF_ONE_CLASS, _ENUM, _OBJECT)}
