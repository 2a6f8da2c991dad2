"""Coroutine functions whose results are kept; needs the ``async`` extra."""

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from datapatterns.cache_aside.auditing import CacheAudit, nobody
from datapatterns.cache_aside.auditing_async import in_a_thread
from datapatterns.cache_aside.cached_function import Calls
from datapatterns.cache_aside.keys import Key
from datapatterns.cache_aside.local_tier import NOT_KEPT, LocalTier, nothing_served

P = ParamSpec("P")
T = TypeVar("T")
ManyResults: TypeAlias = Callable[[AsyncConnection, list[Any]], Awaitable[Mapping[Any, T]]]


class ForgetfulAsync(Protocol):
    """The part of a cache for asyncio that forgets."""

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

    def __init__(  # noqa: PLR0913 -- as for threads
        self,
        load: Callable[Concatenate[AsyncConnection, P], Awaitable[T]],
        *,
        calls: Calls,
        cache: ForgetfulAsync,
        engine: AsyncEngine,
        read: Callable[..., Awaitable[T]],
        read_within: Callable[..., Awaitable[T]],
        read_many: Callable[..., Awaitable[dict[Any, T]]],
        audit: Callable[..., CacheAudit[T]],
        local: LocalTier | None,
    ) -> None:
        functools.update_wrapper(self, load)
        self.load = load
        self._calls = calls
        self._cache = cache
        self._engine = engine
        self._local = local
        self._served: Callable[[tuple[Any, ...]], T] = nothing_served
        if local is not None:
            self._served = local.served
        self._read = read
        self._read_within = read_within
        self._read_many = read_many
        self._audit = audit
        self._load_many: ManyResults[T] = self._load_each

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, from the cache if it can."""
        if not kwargs and (kept := self._served(args)) is not NOT_KEPT:
            return kept
        return await self._read_through(args, kwargs)

    async def _read_through(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        wanted = self._calls.wanted(*args, **kwargs)
        load: Callable[..., Awaitable[T]] = self.load
        value = await self._read(wanted, lambda conn: load(conn, *args, **kwargs))
        if self._local is not None and not kwargs:
            self._local.name_call(args, wanted.entry)
        return value

    async def within(
        self, transaction: AsyncConnection | AsyncSession, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what the function returns in a transaction, as `CachedFunction.within`."""
        wanted = self._calls.wanted(*args, **kwargs)
        return await self._read_within(
            wanted, lambda conn: self.load(conn, *args, **kwargs), transaction
        )

    def key(self, *args: P.args, **kwargs: P.kwargs) -> Key:
        """Return the key of a call."""
        return self._calls.key(*args, **kwargs)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Load the result anew and keep it, as `CachedFunction.refresh`."""
        wanted = self._calls.wanted(*args, **kwargs)
        return await self._read(wanted, lambda conn: self.load(conn, *args, **kwargs), anew=True)

    def many(self, load: ManyResults[T]) -> ManyResults[T]:
        """Let ``load`` find the results of several calls at once, as `CachedFunction.many`."""
        self._load_many = load
        return load

    async def get_many(self, keys: Iterable[Any]) -> dict[Any, T]:
        """Return the results of several calls by their keys, as `CachedFunction.get_many`."""
        return await self._read_many(keys, self._load_many)

    async def audit(
        self,
        *,
        limit: int = 1_000,
        repair: bool = False,
        on_checked: Callable[[int], object] = nobody,
    ) -> CacheAudit[T]:
        """Compare entries with the database, as `CachedFunction.audit`.

        It runs in a thread, which calls ``on_checked``; values are loaded in tasks of this loop.
        """
        found = await in_a_thread(
            lambda load: self._audit(load, limit, on_checked), self._load_keys
        )
        if repair and found.violations:
            await self._cache.invalidate(*(each.key for each in found.violations))
        return found

    async def _load_keys(self, keys: Sequence[Key]) -> Mapping[Key, T]:
        async with self._engine.connect() as conn:
            own = await conn.execution_options(isolation_level="AUTOCOMMIT")
            return await self._load_each(own, [*keys])

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result of this call now."""
        await self._cache.invalidate(self._calls.key(*args, **kwargs))

    def invalidate_in(
        self, writer: Connection | Session, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Forget the result of this call if and when the transaction of ``writer`` commits.

        For ``run_sync`` of an async connection or session.
        """
        self._cache.invalidate_in(writer, self._calls.key(*args, **kwargs))

    async def _load_each(self, conn: AsyncConnection, keys: list[Any]) -> dict[Any, T]:
        load: Callable[..., Awaitable[T]] = self.load
        return {key: await load(conn, *self._calls.arguments(key)) for key in keys}
