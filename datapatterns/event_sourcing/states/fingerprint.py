"""A hash of what code does, so that a snapshot is never used by code that would fold differently.

It covers the byte code, defaults and closures of the given functions, and what they name:
constants, functions and classes of the same packages, also by way of a module, methods and
constants of the classes given, and classes of fields. Layout, comments, file names and memory
addresses do not matter, nor does the hash seed. It does not see other packages, what their objects
hold, relative imports inside a function, nor code that is looked up by a computed name; for those
an aggregate has ``snapshot_version``.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cached_property, lru_cache, partial, partialmethod
from importlib import import_module
from re import Pattern
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any, Final, TypeGuard, get_args, get_type_hints
from uuid import UUID

from datapatterns.event_sourcing.content.shapes import field_names

_TELLING = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(Decimal, Fraction, UUID, date, time, timedelta, tzinfo, range),
)
"""Values whose ``repr`` says all of them."""

_PARTS: Final[dict[type, Callable[[Any], object]]] = {
    property: lambda wrapper: [wrapper.fget, wrapper.fset, wrapper.fdel],
    staticmethod: lambda wrapper: wrapper.__func__,
    classmethod: lambda wrapper: wrapper.__func__,
    cached_property: lambda wrapper: wrapper.func,
    partial: lambda wrapper: [wrapper.func, wrapper.args, wrapper.keywords],
    partialmethod: lambda wrapper: [wrapper.func, wrapper.args, wrapper.keywords],
    type(lru_cache(len)): lambda wrapper: wrapper.__wrapped__,
    MethodType: lambda method: [method.__self__, method.__func__],
    BuiltinFunctionType: lambda function: function.__qualname__,
    Pattern: lambda pattern: [pattern.pattern, pattern.flags],
}
"""What objects of the standard library hold that matters here."""


def fingerprint(
    code: Iterable[tuple[str, Any]],
    *,
    owners: Iterable[type],
    packages: Collection[str],
    extra: object,
) -> bytes:
    """Return 32 bytes that change when something in ``code`` does something else.

    Args:
        code: Functions, classes and values by name, in an order that does not depend on chance.
        owners: Classes whose attributes the functions use through their arguments.
        packages: The top-level packages whose code is followed; others count by name only.
        extra: Anything else that matters, with a ``repr`` that tells it apart.
    """
    reading = _Reading(tuple(owners), packages)
    parts = [(name, reading.describe(value)) for name, value in code]
    return hashlib.sha256(repr((parts, extra)).encode()).digest()


def classes_in(hint: object) -> Iterator[type]:
    """Return the classes that a type hint names, in its order."""
    if isinstance(hint, type):
        yield hint
    for part in get_args(hint):
        yield from classes_in(part)


class _Reading:
    """Describes code once; where it is met again, by its number."""

    def __init__(self, owners: tuple[type, ...], packages: Collection[str]) -> None:
        self._owners = owners
        self._packages = packages
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []

    def describe(self, value: Any) -> object:  # noqa: ANN401 -- whatever code can name
        if isinstance(value, Enum):
            return type(value).__qualname__, value.name, self.describe(value.value)
        if isinstance(value, _TELLING):
            return type(value).__name__, repr(value)
        if isinstance(value, tuple):
            return type(value).__name__, [self.describe(part) for part in value]
        if isinstance(value, set | frozenset):  # their order depends on the hash seed
            return type(value).__name__, sorted(repr(self.describe(part)) for part in value)
        if id(value) in self._seen:
            return "seen", self._seen[id(value)]
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)  # or another object might get its id
        return self._describe_object(value)

    def _describe_object(self, value: Any) -> object:  # noqa: ANN401 -- whatever code can name
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        kind = type(value).__qualname__
        if isinstance(value, list):
            return kind, [self.describe(part) for part in value]
        if isinstance(value, dict | MappingProxyType):
            return kind, [(self.describe(k), self.describe(v)) for k, v in value.items()]
        if names := field_names(type(value)):
            held = [(name, self.describe(getattr(value, name, None))) for name in names]
            return kind, self.describe(type(value)), held
        parts = _PARTS.get(type(value))
        return kind, parts and self.describe(parts(value))

    def _class(self, cls: type) -> object:
        if not self._is_ours(cls):
            return cls.__qualname__
        bases = [self.describe(base) for base in cls.__mro__[1:]]
        members = [
            (name, self.describe(member))
            for name, member in sorted(vars(cls).items())
            if isinstance(member, FunctionType) or not name.startswith("__")
        ]
        held = [self.describe(part) for hint in hints_of(cls) for part in classes_in(hint)]
        return cls.__qualname__, bases, members, held

    def _function(self, function: FunctionType) -> object:
        # A decorator of another package keeps the function that matters in a cell.
        cells = [self.describe(cell.cell_contents) for cell in function.__closure__ or ()]
        wrapped = self.describe(getattr(function, "__wrapped__", None))
        if not self._is_ours(function):
            return function.__qualname__, cells, wrapped
        names = sorted(_names_in(function.__code__))
        places: list[Mapping[str, Any]] = [function.__globals__]
        places += map(vars, self._modules(function, names))
        # All classes above an owner: super() names what is overridden.
        places += [vars(cls) for o in self._owners for cls in o.__mro__ if self._is_ours(cls)]
        used = [
            (name, self.describe(place[name]))
            for name in names
            for place in places
            if name in place
        ]
        defaults = self.describe(function.__defaults__), self.describe(function.__kwdefaults__)
        return _code(function.__code__), defaults, cells, wrapped, used

    def _modules(self, function: FunctionType, names: list[str]) -> list[ModuleType]:
        """Return our modules that a function names, or imports when it runs."""
        # Only what is imported inside has dots; it is imported here, so that the answer does
        # not depend on whether the function ran before.
        dotted = [name for name in names if "." in name and _top(name) in self._packages]
        modules = [import_module(name) for name in dotted]
        places = [function.__globals__, *map(vars, modules)]
        for place in places:  # it grows: package.module.name
            for module in filter(self._is_our_module, map(place.get, names)):
                if module not in modules:
                    modules.append(module)
                    places.append(vars(module))
        return modules

    def _is_our_module(self, value: object) -> TypeGuard[ModuleType]:
        return isinstance(value, ModuleType) and _top(value.__name__) in self._packages

    def _is_ours(self, code: Any) -> bool:  # noqa: ANN401 -- a class or a function
        return _top(str(code.__module__)) in self._packages


def _top(module: str) -> str:
    return module.partition(".")[0]


def hints_of(cls: type) -> Iterable[object]:
    """Return the types of the fields of a class that has some."""
    if not field_names(cls):
        return ()
    try:
        return get_type_hints(cls).values()
    except NameError:  # only the type checker can resolve it, so no data can be decoded into it
        return ()


def _names_in(code: CodeType) -> set[str]:
    nested = (_names_in(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*nested)


def _code(code: CodeType) -> object:
    return (
        code.co_code.hex(),
        code.co_exceptiontable.hex(),
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        [_constant(constant) for constant in code.co_consts],
    )


def _constant(constant: object) -> object:
    if isinstance(constant, CodeType):
        return _code(constant)
    if isinstance(constant, frozenset):
        return "set", sorted(repr(_constant(part)) for part in constant)
    if isinstance(constant, tuple):
        return [_constant(part) for part in constant]
    return type(constant).__name__, repr(constant)
