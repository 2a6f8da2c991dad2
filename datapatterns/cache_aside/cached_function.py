"""Functions whose results are kept."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, get_type_hints

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from datapatterns.cache_aside.keys import Key, entry_of

P = ParamSpec("P")
T = TypeVar("T")


class Forgetful(Protocol):
    """The part of a cache that forgets."""

    name: str

    def invalidate(self, *keys: Key) -> None:
        """Forget ``keys`` now."""
        ...

    def invalidate_in(self, writer: Connection | Session, *keys: Key) -> None:
        """Forget ``keys`` if and when the transaction of ``writer`` commits."""
        ...


class CachedFunction(Generic[P, T]):
    """A function that reads through a cache; call it without ``conn``.

    Its key is its arguments: one argument is the key itself, several are a tuple, in the order of
    the parameters and with defaults filled in.
    """

    def __init__(
        self,
        load: Callable[Concatenate[Connection, P], T],
        *,
        cache: Forgetful,
        read: Callable[[str, Callable[[Connection], T]], T],
    ) -> None:
        functools.update_wrapper(self, load)
        self.load = load
        self._cache = cache
        self._read = read
        parameters = list(inspect.signature(load).parameters.values())[1:]
        self._signature = inspect.Signature(parameters)
        # A call by position with every argument given needs no binding.
        self._plain_count = len(parameters) if all(map(_is_plain, parameters)) else -1

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, from the cache if it can."""
        entry = entry_of(self._cache.name, self.key(*args, **kwargs))
        return self._read(entry, lambda conn: self.load(conn, *args, **kwargs))

    def key(self, *args: P.args, **kwargs: P.kwargs) -> Key:
        """Return the key of a call: for the cache, equal calls are the same call."""
        values: tuple[Any, ...]
        if not kwargs and len(args) == self._plain_count:
            values = args
        else:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = (*bound.args, *bound.kwargs.values())
        return values[0] if len(values) == 1 else values

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result of this call now."""
        self._cache.invalidate(self.key(*args, **kwargs))

    def invalidate_in(
        self, writer: Connection | Session, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Forget the result of this call if and when the transaction of ``writer`` commits."""
        self._cache.invalidate_in(writer, self.key(*args, **kwargs))

    def wraps_the_same_as(self, load: Callable[..., Any]) -> bool:
        """Return whether ``load`` is this function again, perhaps from a module loaded anew."""
        ours, theirs = inspect.unwrap(self.load), inspect.unwrap(load)
        return (ours.__module__, ours.__qualname__) == (theirs.__module__, theirs.__qualname__)


def value_type_of(load: Callable[..., Any]) -> object:
    """Return what ``load`` says it returns; plain data if it does not say."""
    return get_type_hints(load).get("return", Any)


def _is_plain(parameter: inspect.Parameter) -> bool:
    return parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
