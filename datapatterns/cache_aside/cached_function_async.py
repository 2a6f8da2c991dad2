"""Coroutine functions whose results are kept; needs the ``async`` extra."""

import functools
from collections.abc import Awaitable, Callable
from typing import Concatenate, Generic, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Session

from datapatterns.cache_aside.cached_function import key_of_calls
from datapatterns.cache_aside.keys import Key, entry_of

P = ParamSpec("P")
T = TypeVar("T")


class ForgetfulAsync(Protocol):
    """The part of a cache for asyncio that forgets."""

    @property
    def name(self) -> str:
        """What the cache holds."""
        ...

    async def invalidate(self, *keys: Key) -> None:
        """Forget ``keys`` now."""
        ...

    def invalidate_in(self, writer: Connection | Session, *keys: Key) -> None:
        """Forget ``keys`` if and when the transaction of ``writer`` commits."""
        ...


class AsyncCachedFunction(Generic[P, T]):
    """A coroutine function that reads through a cache; call it without ``conn``.

    Attributes:
        load: The function itself, as in `CachedFunction`.
    """

    def __init__(
        self,
        load: Callable[Concatenate[AsyncConnection, P], Awaitable[T]],
        *,
        cache: ForgetfulAsync,
        read: Callable[[str, Callable[[AsyncConnection], Awaitable[T]]], Awaitable[T]],
    ) -> None:
        functools.update_wrapper(self, load)
        self.load = load
        self._key = key_of_calls(load)
        self._cache = cache
        self._read = read

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, from the cache if it can."""
        entry = entry_of(self._cache.name, self._key(*args, **kwargs))
        return await self._read(entry, lambda conn: self.load(conn, *args, **kwargs))

    def key(self, *args: P.args, **kwargs: P.kwargs) -> Key:
        """Return the key of a call."""
        return self._key(*args, **kwargs)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result of this call now."""
        await self._cache.invalidate(self._key(*args, **kwargs))

    def invalidate_in(
        self, writer: Connection | Session, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Forget the result of this call if and when the transaction of ``writer`` commits.

        For ``run_sync`` of an async connection or session.
        """
        self._cache.invalidate_in(writer, self._key(*args, **kwargs))
