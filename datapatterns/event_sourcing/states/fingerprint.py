"""A hash of what code does, so that a snapshot is never used by code that would fold differently.

It covers the byte code, defaults and closures of the given functions, and what they name:
constants, objects with what they hold, functions and classes of the same packages, also by way of a
module, methods and constants of the classes given, and how classes with fields make them: defaults,
converters, validators, type hints. Layout, comments, file names and memory addresses do not matter,
nor does the hash seed. It does not see other packages, what their objects hold, relative imports
inside a function, nor code that is looked up by a computed name; for those an aggregate has
``snapshot_version``.
"""

import builtins
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from functools import cached_property
from importlib import import_module
from inspect import (
    CO_ASYNC_GENERATOR,
    CO_COROUTINE,
    CO_GENERATOR,
    CO_VARARGS,
    CO_VARKEYWORDS,
    get_annotations,
)
from types import CodeType, FunctionType, MappingProxyType, MemberDescriptorType, ModuleType
from typing import Any, Final, TypeGuard, get_args, get_origin

from datapatterns.event_sourcing.content.shapes import field_names, fields_made, hints_of
from datapatterns.event_sourcing.states.library_objects import PARTS, TELLING
from datapatterns.event_sourcing.states.told_graph import Told, graph_digest

_CALLED_UNNAMED: Final = (FunctionType, staticmethod, classmethod, property)
_HINT_PARTS: Final = ("__supertype__", "__bound__", "__constraints__", "__value__")
_HASH_KEPT_BY_ATTRS: Final = "_attrs_cached_hash"  # of names, so another one in each process
_CALLED_AS: Final = CO_VARARGS | CO_VARKEYWORDS | CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR


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
    return graph_digest([reading.told((parts, extra)), *reading.met()])


def operators_of(cls: type) -> list[tuple[str, Any]]:
    """Return what Python calls without that its name is written: operators, ``__setattr__``.

    But for ``__hash__``: attrs writes the hash of a name into it, another one in each process.
    """
    return [
        (name, member)
        for name, member in sorted(vars(cls).items())
        if name.startswith("__") and name != "__hash__" and isinstance(member, _CALLED_UNNAMED)
    ]


class _Link:
    """Stands for something that is described by itself."""

    def __repr__(self) -> str:
        return "@"


_LINK: Final = _Link()


class _Reading:
    """Describes one thing after another, each once, with links to what it leads to.

    Not one within another: code leads ever further, and deeper than Python's stack.
    """

    def __init__(self, owners: tuple[type, ...], packages: Collection[str]) -> None:
        self._owners = owners
        self._packages = packages
        self._numbers: dict[int, int] = {}
        self._met: list[object] = []  # kept, or another object might get its id
        self._links: list[int] = []
        self._members: list[int] = []

    def describe(self, value: Any) -> object:  # noqa: ANN401 -- whatever code can name
        """Return what is told of ``value`` where it is met: all, or that it is told elsewhere."""
        if not self._is_ours(type(value)):  # else it may hold more, and itself among that
            if isinstance(value, TELLING) and type(value).__repr__ is not object.__repr__:
                return type(value).__qualname__, repr(value)
            if isinstance(value, tuple):  # equal ones may be one or several: Python may choose
                return type(value).__qualname__, [self.describe(part) for part in value]
        number = self._numbers.setdefault(id(value), len(self._met) + 1)
        if number > len(self._met):
            self._met.append(value)
        self._links.append(number)
        return _LINK

    def told(self, description: object) -> Told:
        """Return ``description`` with the links that were met in it."""
        told = Told(repr(description), self._links, self._members)
        self._links, self._members = [], []
        return told

    def met(self) -> Iterator[Told]:
        """Yield what is told of all that was met, and of all that this leads to."""
        for value in self._met:  # it grows
            yield self.told(self._described(value))

    def _described(self, value: Any) -> object:  # noqa: ANN401 -- whatever code can name
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        return self._kind(value), self._held(value), self._attributes(value)

    def _kind(self, value: object) -> object:
        cls = type(value)
        return self.describe(cls) if self._is_ours(cls) else cls.__qualname__

    def _unordered(self, parts: Collection[Any]) -> object:
        """Describe the parts of a set; their order depends on the hash seed and on addresses."""
        before = len(self._links)
        told = sorted(repr(self.describe(part)) for part in parts)
        self._members += self._links[before:]
        del self._links[before:]
        return told

    def _held(self, value: Any) -> object:  # noqa: ANN401 -- whatever code can name
        if isinstance(value, Enum):
            return value.name, self.describe(value.value)
        if isinstance(value, TELLING):
            # As the class tells it that ours extends: ours may leave something out.
            told: Any = next(c for c in type(value).__mro__ if not self._is_ours(c)).__repr__
            return None if told is object.__repr__ else told(value)
        if isinstance(value, list | tuple):
            return [self.describe(part) for part in value]
        if isinstance(value, set | frozenset):
            return self._unordered(value)
        if isinstance(value, dict | MappingProxyType):
            items = [(self.describe(k), self.describe(v)) for k, v in value.items()]
            missing = value.default_factory if isinstance(value, defaultdict) else None
            return items, self.describe(missing)
        return self._parts(value)

    def _parts(self, value: Any) -> object:  # noqa: ANN401 -- as above
        if names := field_names(type(value)):
            return [(name, self.describe(getattr(value, name, None))) for name in names]
        if get_origin(value) is not None:  # a type hint
            return self.describe(get_origin(value)), [self.describe(p) for p in get_args(value)]
        if type(value).__module__ == "typing":
            inner = [self.describe(getattr(value, name, None)) for name in _HINT_PARTS]
            return getattr(value, "__name__", repr(value)), inner
        parts = PARTS.get(type(value))
        return parts and self.describe(parts(value))

    def _attributes(self, value: Any) -> object:  # noqa: ANN401 -- whatever code can name
        """Return what an object of a class of ours holds."""
        cls = type(value)
        if not self._is_ours(cls):
            return None
        held = dict(getattr(value, "__dict__", {}))
        for above in cls.__mro__:
            for name, member in vars(above).items():
                if isinstance(member, MemberDescriptorType):
                    held.setdefault(name, getattr(value, name, None))
        # What was computed once and kept follows from the rest, and may not be there yet.
        held.pop(_HASH_KEPT_BY_ATTRS, None)
        names = [n for n in sorted(held) if not isinstance(getattr(cls, n, None), cached_property)]
        return [(name, self.describe(held[name])) for name in names]

    def _class(self, cls: type) -> object:
        if not self._is_ours(cls):
            return f"{cls.__module__}.{cls.__qualname__}"
        above = [self.describe(base) for base in (*cls.__mro__[1:], type(cls))]
        members = [
            (name, self.describe(member))
            for name, member in sorted(vars(cls).items())
            if not name.startswith("__") or name == "__match_args__"
        ]
        members += [(name, self.describe(member)) for name, member in operators_of(cls)]
        made = [(name, self.describe(parts)) for name, parts in fields_made(cls)]
        hints = [self.describe(hint) for hint in hints_of(cls) or get_annotations(cls).items()]
        return cls.__qualname__, above, members, made, hints

    def _function(self, function: FunctionType) -> object:
        # A decorator of another package keeps the function that matters in a cell, or names it.
        cells = [self.describe(cell.cell_contents) for cell in function.__closure__ or ()]
        kept = [(name, self.describe(value)) for name, value in sorted(vars(function).items())]
        if not self._is_ours(function):
            return function.__module__, function.__qualname__, cells, kept
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
        return _code(function.__code__), defaults, cells, kept, used

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
        # Where no __name__ is, classes get the module of int and str, and functions none.
        is_pythons = vars(builtins).get(code.__qualname__) is code
        return not is_pythons and _top(code.__module__ or "builtins") in self._packages


def _top(module: str) -> str:
    return module.partition(".")[0]


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
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        code.co_flags & _CALLED_AS,
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
