"""Cache-aside for asyncio: the same protocol, driven by coroutines."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, TypeVarTuple, Unpack, overload

from sqlalchemy import CompoundSelect, Connection, Select, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from datapatterns.aio import transaction
from datapatterns.cache_aside.auditing import Auditor
from datapatterns.cache_aside.backing import Backing
from datapatterns.cache_aside.cached_function import (
    Calls,
    refuse_a_second,
    value_type_of,
)
from datapatterns.cache_aside.cached_function_async import AsyncCachedFunction
from datapatterns.cache_aside.capturing import Tabled
from datapatterns.cache_aside.cluster_links_async import async_links_to
from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.counting import CacheStats
from datapatterns.cache_aside.driver_async import AsyncDriver, AsyncLoader, AsyncManyLoader
from datapatterns.cache_aside.flights_async import AsyncFlights
from datapatterns.cache_aside.keys import Key
from datapatterns.cache_aside.policy import DEFAULT_POLICY, CachePolicy, ValueOptions, layered
from datapatterns.cache_aside.query_plans import AnyQuery
from datapatterns.cache_aside.querying_async import read_query
from datapatterns.cache_aside.relaying import RelayReport
from datapatterns.cache_aside.tags import no_tags, wanted_of
from datapatterns.cache_aside.writing import AfterCommit, act_on, collecting
from datapatterns.failpoints import failpoint
from datapatterns.outcomes import find_unknown_outcome
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.telemetry import SILENT, Observer

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
K = TypeVar("K", bound=Key)


class AsyncCache:
    """What `Cache` is, for one event loop; both may be used on the same entries.

    What happens seldom (a relay round, a delete after a commit) runs in a thread.

    Args:
        redis: A URL, as for `Cache`.
        engine: The primary of the database, by psycopg.
        name: What the cache holds; part of every key.
        policy: The times to live by.
        schema: Where the library's tables live.
        target: The name of this Redis; its keys begin with it. One name for one Redis.
        observer: Where counts and durations go.
        load_from: A replica to load from, as for `Cache`.
        strict: Whether writers commit only behind a fence in Redis, as for `Cache`.
    """

    def __init__(  # noqa: PLR0913 -- a composition root of its own
        self,
        redis: str,
        engine: AsyncEngine,
        *,
        name: str,
        policy: CachePolicy = DEFAULT_POLICY,
        schema: str = DEFAULT_SCHEMA,
        target: str = "datapatterns",
        observer: Observer = SILENT,
        load_from: AsyncEngine | None = None,
        strict: bool = False,
    ) -> None:
        self._engine = engine
        flights = AsyncFlights()
        self._backing = Backing(
            redis,
            create_engine(engine.url, poolclass=NullPool),
            name=name,
            policy=policy,
            schema=schema,
            target=target,
            observer=observer,
            strict=strict,
            detach=flights.detach,
        )
        self._links = async_links_to(
            redis,
            timeout_seconds=policy.redis_timeout_seconds,
            reports_to=self._backing.links,
        )
        self._driver = AsyncDriver(engine, self._backing, self._links, flights, load_from)
        self._queries = self._backing.queries()
        self._cached: AsyncCachedFunction[..., Any] | None = None

    @property
    def name(self) -> str:
        """What the cache holds."""
        return self._backing.name

    @property
    def policy(self) -> CachePolicy:
        """The times to live by."""
        return self._backing.policy

    async def get_or_load(
        self,
        key: Key,
        load: AsyncLoader[T],
        *,
        value_type: object = Any,
        tags: Iterable[str] = (),
        within: AsyncConnection | AsyncSession | None = None,
        allow_nonrepeatable: bool = False,
        **options: Unpack[ValueOptions],
    ) -> T:
        """Return the value under ``key``; if there is none, ``load`` it and keep it.

        As `Cache.get_or_load`. A cancelled caller does not cancel the load that others wait for.
        """
        codec: Codec[T] = self._backing.codec(value_type)
        policy = layered(self.policy, options) if options else self._driver.policy  # hot
        wanted = wanted_of(self.name, key, tags)
        if within is not None:
            return await self._driver.read_within(
                codec, policy, wanted, load, within, allow_nonrepeatable=allow_nonrepeatable
            )
        return await self._driver.read(codec, policy, wanted, load)

    async def get_many(
        self,
        keys: Iterable[K],
        load: AsyncManyLoader[K, T],
        *,
        value_type: object = Any,
        tags: Callable[[K], Iterable[str]] = no_tags,
        **options: Unpack[ValueOptions],
    ) -> dict[K, T | None]:
        """Return the values under ``keys``; those that are missing are loaded together and kept.

        As `Cache.get_many`.
        """
        codec: Codec[T] = self._backing.codec(value_type)
        policy = layered(self.policy, options)
        return await self._driver.read_many(
            codec, policy, lambda key: wanted_of(self.name, key, tags(key)), keys, load
        )

    @overload
    async def query(
        self,
        statement: Select[*Ts] | CompoundSelect[*Ts],
        *,
        tags: Iterable[str] | None = None,
        within: AsyncConnection | AsyncSession | None = None,
    ) -> list[tuple[*Ts]]: ...

    @overload
    async def query(
        self,
        statement: AnyQuery,
        *,
        value_type: type[T],
        tags: Iterable[str] | None = None,
        within: AsyncConnection | AsyncSession | None = None,
    ) -> list[T]: ...

    async def query(
        self,
        statement: AnyQuery,
        *,
        value_type: Any = None,
        tags: Iterable[str] | None = None,
        within: AsyncConnection | AsyncSession | None = None,
    ) -> Any:  # as the overloads say
        """Return the rows of a query, from the cache if it can, as `Cache.query`.

        The tables in it have to be captured: no sessions of asyncio tell of their writes.
        """
        return await read_query(self._queries, self._driver, statement, value_type, tags, within)

    @overload
    def cached(
        self, load: Callable[Concatenate[AsyncConnection, P], Awaitable[T]]
    ) -> AsyncCachedFunction[P, T]: ...

    @overload
    def cached(
        self,
        *,
        tags: Callable[P, Iterable[str]],
        allow_nonrepeatable: bool = False,
        **options: Unpack[ValueOptions],
    ) -> Callable[
        [Callable[Concatenate[AsyncConnection, P], Awaitable[T]]], AsyncCachedFunction[P, T]
    ]: ...

    @overload
    def cached(
        self, *, allow_nonrepeatable: bool = False, **options: Unpack[ValueOptions]
    ) -> Callable[
        [Callable[Concatenate[AsyncConnection, P], Awaitable[T]]], AsyncCachedFunction[P, T]
    ]: ...

    def cached(  # as the overloads say
        self,
        load: Any = None,
        *,
        tags: Any = None,
        allow_nonrepeatable: bool = False,
        **options: Unpack[ValueOptions],
    ) -> Any:
        """Make a coroutine function that takes ``conn`` first into one that reads through.

        Args:
            load: The function.
            tags: What the result depends on besides the arguments, which this is called with.
            allow_nonrepeatable: As for `Cache.get_or_load`, of all calls of
                `AsyncCachedFunction.within`.
            options: Times of the function's results in place of the cache's.

        Raises:
            SettingsError: The cache holds another function's results, or an option has no sense.
        """
        policy = layered(self.policy, options)
        if load is None:
            return partial(
                self.cached, tags=tags, allow_nonrepeatable=allow_nonrepeatable, **options
            )
        refuse_a_second(self.name, self._cached, load)
        codec: Codec[Any] = self._backing.codec(value_type_of(load))
        calls, local = Calls(load, self.name, tags), self._backing.local

        self._cached = AsyncCachedFunction(
            load,
            calls=calls,
            cache=self,
            engine=self._engine,
            read=partial(self._driver.read, codec, policy),
            read_within=partial(
                self._driver.read_within, codec, policy, allow_nonrepeatable=allow_nonrepeatable
            ),
            read_many=partial(self._driver.read_many, codec, policy, calls.wanted_of),
            audit=lambda load, limit, on_checked: Auditor(
                self._backing, codec, calls.wanted_of, load
            ).audit(limit, on_checked),
            local=local and local.take_calls(codec),
        )
        return self._cached

    def invalidate_in(
        self, writer: Connection | Session, *keys: Key, tags: Iterable[str] = ()
    ) -> None:
        """Forget ``keys`` if and when the transaction commits, as `Cache.invalidate_in`.

        An operation like others: ``await conn.run_sync(cache.invalidate_in, 5)``.
        """
        self._backing.invalidate_in(writer, keys, tags)

    async def invalidate(self, *keys: Key, tags: Iterable[str] = ()) -> None:
        """Forget ``keys`` now, and what depends on ``tags``; in the end even if Redis is away."""
        async with self.writes() as conn:
            await conn.run_sync(self._backing.invalidate_in, keys, tags, is_late=True)

    @asynccontextmanager
    async def writes(self, engine: AsyncEngine | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a transaction and commit it, like ``engine.begin()``; then forget at once.

        Raises:
            AbortedTransactionError: An error was caught in the block, so nothing can be committed.
            OutcomeUnknownError: The COMMIT was sent and its answer was lost; forgotten all the
                same.
            UnfencedWriteError: The cache is strict, and Redis did not put up a fence.
        """
        acts: list[AfterCommit] = []
        attempted = f"a write to what cache {self._backing.name!r} holds"
        try:
            async with transaction(engine or self._engine, attempted=attempted) as conn:
                assert conn.sync_connection is not None
                with collecting(conn.sync_connection) as acts:
                    yield conn
        except BaseException as error:
            if acts and find_unknown_outcome(error) is not None:
                # To forget too much does no harm; what commits later, the relay tells.
                await asyncio.shield(asyncio.to_thread(act_on, acts, is_certain=False))
            raise
        failpoint("cache.write-committed")
        if acts:
            # It has committed: whoever is cancelled now has written, and shall see what he wrote.
            await asyncio.shield(asyncio.to_thread(act_on, acts))

    async def capture(self, conn: AsyncConnection, *models: Tabled, by_key: bool = True) -> None:
        """Let the relay forget what depends on ``models``, as `Cache.capture`."""
        await conn.run_sync(self._backing.capture, models, by_key=by_key)

    async def release(self, conn: AsyncConnection, *models: Tabled) -> None:
        """Let the relay follow ``models`` no more, as `Cache.release`."""
        await conn.run_sync(self._backing.release, models)

    async def relay(self) -> RelayReport:
        """Send every invalidation that has committed and was not sent yet; one round.

        Raises:
            ServerUnavailableError: Redis did not answer; nothing is lost.
            SettingsError: The engine leads to a standby.
        """
        return await asyncio.to_thread(self._backing.relay)

    def stats(self) -> CacheStats:
        """Return what this process has done with the cache."""
        return self._backing.stats()

    async def close(self) -> None:
        """Close idle connections to Redis."""
        await self._links.close()
        await asyncio.to_thread(self._backing.close)
