"""What objects of the standard library say, as far as code can compute something else with it.

Each object that is missing here counts by its type only: a snapshot would outlive a change of what
it holds.
"""

from array import array
from collections import ChainMap, UserDict, UserList, UserString, deque
from collections.abc import Callable
from datetime import date, time, timedelta, tzinfo
from decimal import Context, Decimal
from enum import property as enum_property
from fractions import Fraction
from functools import cached_property, lru_cache, partial, partialmethod, singledispatchmethod
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from operator import attrgetter, itemgetter, methodcaller
from pathlib import PurePath
from re import Pattern
from string import Template
from struct import Struct
from types import (
    BuiltinFunctionType,
    DynamicClassAttribute,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any, Final
from uuid import UUID

TELLING: Final = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(Decimal, Fraction, UUID, date, time, timedelta, tzinfo, range),
    *(IPv4Address, IPv4Network, IPv6Address, IPv6Network, PurePath),
)
"""Values whose ``repr`` says all of them."""


def _accessors(wrapper: Any) -> object:  # noqa: ANN401 -- a property of some kind
    return [wrapper.fget, wrapper.fset, wrapper.fdel]


def _arithmetic(context: Context) -> object:
    # Without its flags: those say what was computed already.
    traps = sorted(signal.__name__ for signal, is_set in context.traps.items() if is_set)
    bounds = context.prec, context.Emin, context.Emax, context.clamp, context.capitals
    return [*bounds, context.rounding, traps]


PARTS: Final[dict[type, Callable[[Any], object]]] = {
    property: _accessors,
    enum_property: _accessors,
    DynamicClassAttribute: _accessors,
    staticmethod: lambda wrapper: wrapper.__func__,
    classmethod: lambda wrapper: wrapper.__func__,
    cached_property: lambda wrapper: wrapper.func,
    partial: lambda wrapper: [wrapper.func, wrapper.args, wrapper.keywords],
    partialmethod: lambda wrapper: [wrapper.func, wrapper.args, wrapper.keywords],
    type(lru_cache(len)): lambda wrapper: wrapper.__wrapped__,
    singledispatchmethod: lambda method: [method.func, method.dispatcher],
    MethodType: lambda method: [method.__self__, method.__func__],
    BuiltinFunctionType: lambda function: [function.__qualname__, function.__self__],
    MethodWrapperType: lambda method: [method.__qualname__, method.__self__],
    MethodDescriptorType: lambda method: method.__qualname__,
    WrapperDescriptorType: lambda method: method.__qualname__,
    ModuleType: lambda module: module.__name__,
    Pattern: lambda pattern: [pattern.pattern, pattern.flags],
    Context: _arithmetic,
    deque: lambda queue: [queue.maxlen, *queue],
    bytearray: bytes,
    memoryview: bytes,
    array: lambda numbers: [numbers.typecode, *numbers],
    slice: lambda part: [part.start, part.stop, part.step],
    Struct: lambda layout: layout.format,
    type({}.keys()): list,
    type({}.values()): list,
    type({}.items()): list,
    ChainMap: lambda chain: chain.maps,
    UserDict: vars,
    UserList: vars,
    UserString: vars,
    Template: vars,
    SimpleNamespace: vars,
    attrgetter: lambda getter: getter.__reduce__()[1:],
    itemgetter: lambda getter: getter.__reduce__()[1:],
    methodcaller: lambda caller: caller.__reduce__()[1:],
}
"""What objects of the standard library hold that matters here."""
