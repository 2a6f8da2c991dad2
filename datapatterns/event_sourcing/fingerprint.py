"""A hash of what code does, so that a snapshot is never used by code that would fold differently.

It covers the byte code, defaults and closures of the given functions, and what they name: module
constants, functions and classes of the same package, methods and constants of the classes given.
Layout, comments, file names and memory addresses do not matter, nor does the hash seed. It does
not see other packages, what objects hold, nor code that is looked up by a computed name; for
those an aggregate has ``snapshot_version``.
"""

import hashlib
from collections.abc import Iterable
from enum import Enum
from types import CodeType, FunctionType
from typing import Any

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def fingerprint(
    functions: Iterable[tuple[str, Any]], *, owners: Iterable[type], package: str, extra: object
) -> bytes:
    """Return 32 bytes that change when one of ``functions`` does something else.

    Args:
        functions: By name, in an order that does not depend on chance.
        owners: Classes whose attributes the functions use through their arguments.
        package: The top-level package whose code is followed; others count by name only.
        extra: Anything else that matters, with a ``repr`` that tells it apart.
    """
    reading = _Reading(tuple(owners), package)
    parts = [(name, reading.describe(function)) for name, function in functions]
    return hashlib.sha256(repr((parts, extra)).encode()).digest()


class _Reading:
    """Describes code once; where it is met again, by its number."""

    def __init__(self, owners: tuple[type, ...], package: str) -> None:
        self._owners = owners
        self._package = package
        self._seen: dict[int, int] = {}

    def describe(self, value: Any) -> object:  # noqa: ANN401 -- whatever code can name
        if isinstance(value, Enum):
            return type(value).__qualname__, value.name
        if isinstance(value, _PLAIN):
            return type(value).__name__, repr(value)
        if isinstance(value, list | tuple):
            return type(value).__name__, [self.describe(part) for part in value]
        if isinstance(value, set | frozenset):  # their order depends on the hash seed
            return type(value).__name__, sorted(repr(self.describe(part)) for part in value)
        if isinstance(value, dict):
            return "dict", [(self.describe(k), self.describe(v)) for k, v in value.items()]
        return self._describe_code(value)

    def _describe_code(self, value: Any) -> object:  # noqa: ANN401 -- whatever code can name
        if isinstance(value, property):
            return "property", self.describe(value.fget)
        if isinstance(value, staticmethod | classmethod):
            return type(value).__name__, self.describe(value.__func__)
        if not isinstance(value, FunctionType | type):
            return type(value).__qualname__
        if id(value) in self._seen:
            return "seen", self._seen[id(value)]
        self._seen[id(value)] = len(self._seen)
        return self._class(value) if isinstance(value, type) else self._function(value)

    def _class(self, cls: type) -> object:
        if not self._is_ours(cls):
            return cls.__qualname__
        members = sorted(vars(cls).items())
        described = [
            (name, self.describe(member))
            for name, member in members
            if isinstance(member, FunctionType | property | staticmethod | classmethod | Enum)
            or (isinstance(member, _PLAIN) and not name.startswith("__"))
        ]
        return cls.__qualname__, [base.__qualname__ for base in cls.__mro__], described

    def _function(self, function: FunctionType) -> object:
        # A decorator of another package keeps the function that matters in a cell.
        cells = [self.describe(cell.cell_contents) for cell in function.__closure__ or ()]
        wrapped = self.describe(getattr(function, "__wrapped__", None))
        if not self._is_ours(function):
            return function.__qualname__, cells, wrapped
        used = [
            (name, self.describe(found))
            for name in sorted(_names_in(function.__code__))
            for found in self._look_up(function, name)
        ]
        defaults = self.describe(function.__defaults__), self.describe(function.__kwdefaults__)
        return _code(function.__code__), defaults, cells, wrapped, used

    def _look_up(self, function: FunctionType, name: str) -> Iterable[object]:
        if name in function.__globals__:
            yield function.__globals__[name]
        for owner in self._owners:
            for cls in owner.__mro__:
                if name in vars(cls) and self._is_ours(cls):
                    yield vars(cls)[name]
                    break

    def _is_ours(self, code: Any) -> bool:  # noqa: ANN401 -- a class or a function
        return str(code.__module__).partition(".")[0] == self._package


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
