"""Cache-aside for asyncio: the same protocol, driven by coroutines."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter, time
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar, overload

from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from datapatterns.aio import transaction
from datapatterns.cache_aside.backing import Backing
from datapatterns.cache_aside.cached_function import Calls, refuse_a_second, value_type_of
from datapatterns.cache_aside.cached_function_async import AsyncCachedFunction
from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.counting import CacheStats
from datapatterns.cache_aside.flights import Turns
from datapatterns.cache_aside.flow import (
    AnyStep,
    CacheSilence,
    Fetch,
    Fetched,
    Fill,
    Flow,
    Load,
    Loaded,
    Look,
    Note,
    Outcome,
    Pause,
    Wanted,
)
from datapatterns.cache_aside.keys import Key, entry_of
from datapatterns.cache_aside.links_async import AsyncLinks
from datapatterns.cache_aside.policy import DEFAULT_POLICY, CachePolicy
from datapatterns.cache_aside.reading import Reading, values_of
from datapatterns.cache_aside.redis_commands import (
    ENTRIES_PER_CALL,
    answer_to,
    command_for,
    glance_at,
    glimpse_of,
)
from datapatterns.cache_aside.relaying import RelayReport, Standing
from datapatterns.cache_aside.standby import is_standby
from datapatterns.cache_aside.tags import checked_tags, no_tags
from datapatterns.cache_aside.writing import AfterCommit, act_on, collecting
from datapatterns.errors import CacheBusyError
from datapatterns.failpoints import failpoint
from datapatterns.outcomes import find_unknown_outcome
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.telemetry import SILENT, Observer

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=Key)
AsyncLoader: TypeAlias = Callable[[AsyncConnection], Awaitable[T]]
AsyncManyLoader: TypeAlias = Callable[[AsyncConnection, list[K]], Awaitable[Mapping[K, T]]]
AsyncReading: TypeAlias = Reading[
    T, Callable[[AsyncConnection, Sequence[int]], Awaitable[Sequence[T]]]
]


class _Flight(NamedTuple):
    task: asyncio.Task[Outcome[Any]]
    kind: object
    tags: Sequence[str]
    turns: Turns


class AsyncCache:
    """What `Cache` is, for one event loop; both may be used on the same entries.

    What happens seldom (a relay round, a delete after a commit) runs in a thread.

    Args:
        redis: A URL.
        engine: The primary of the database, by psycopg.
        name: What the cache holds; part of every key.
        policy: The times to live by.
        schema: Where the library's tables live.
        target: The name of this Redis; its keys begin with it. One name for one Redis.
        observer: Where counts and durations go.
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
    ) -> None:
        self._engine = engine
        self._flights: dict[str, _Flight] = {}
        self._backing = Backing(
            redis,
            create_engine(engine.url, poolclass=NullPool),
            name=name,
            policy=policy,
            schema=schema,
            target=target,
            observer=observer,
            detach=self._detach,
        )
        self._links = AsyncLinks(
            redis,
            timeout_seconds=policy.redis_timeout_seconds,
            breaker=self._backing.breaker,
            reports_to=self._backing.links,
        )
        self._bulkhead = asyncio.Semaphore(policy.loads_at_once)
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
        self, key: Key, load: AsyncLoader[T], *, value_type: object = Any, tags: Iterable[str] = ()
    ) -> T:
        """Return the value under ``key``; if there is none, ``load`` it and keep it.

        As `Cache.get_or_load`. A cancelled caller does not cancel the load that others wait for.
        """
        codec: Codec[T] = self._backing.codec(value_type)
        return await self._read(codec, Wanted(entry_of(self.name, key), checked_tags(tags)), load)

    async def get_many(
        self,
        keys: Iterable[K],
        load: AsyncManyLoader[K, T],
        *,
        value_type: object = Any,
        tags: Callable[[K], Iterable[str]] = no_tags,
    ) -> dict[K, T | None]:
        """Return the values under ``keys``; those that are missing are loaded together and kept.

        As `Cache.get_many`.
        """
        codec: Codec[T] = self._backing.codec(value_type)

        def wanted(key: K) -> Wanted:
            return Wanted(entry_of(self.name, key), checked_tags(tags(key)))

        return await self._read_many(codec, wanted, keys, load)

    @overload
    def cached(
        self, load: Callable[Concatenate[AsyncConnection, P], Awaitable[T]]
    ) -> AsyncCachedFunction[P, T]: ...

    @overload
    def cached(
        self, *, tags: Callable[P, Iterable[str]]
    ) -> Callable[
        [Callable[Concatenate[AsyncConnection, P], Awaitable[T]]], AsyncCachedFunction[P, T]
    ]: ...

    def cached(self, load: Any = None, *, tags: Any = None) -> Any:  # as the overloads say
        """Make a coroutine function that takes ``conn`` first into one that reads through.

        Args:
            load: The function.
            tags: What the result depends on besides the arguments, which this is called with.

        Raises:
            SettingsError: The cache holds another function's results already.
        """
        if load is None:
            return partial(self.cached, tags=tags)
        refuse_a_second(self.name, self._cached, load)
        codec: Codec[Any] = self._backing.codec(value_type_of(load))
        calls = Calls(load, self.name, tags)

        def wanted(key: Key) -> Wanted:
            return calls.wanted(*calls.arguments(key))

        self._cached = AsyncCachedFunction(
            load,
            calls=calls,
            cache=self,
            read=partial(self._read, codec),
            read_many=partial(self._read_many, codec, wanted),
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
            await conn.run_sync(self._backing.invalidate_in, keys, tags)

    @asynccontextmanager
    async def writes(self, engine: AsyncEngine | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a transaction and commit it, like ``engine.begin()``; then forget at once.

        Raises:
            AbortedTransactionError: An error was caught in the block, so nothing can be committed.
            OutcomeUnknownError: The COMMIT was sent and its answer was lost; forgotten all the
                same.
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
                await asyncio.shield(asyncio.to_thread(act_on, acts))
            raise
        failpoint("cache.write-committed")
        if acts:
            # It has committed: whoever is cancelled now has written, and shall see what he wrote.
            await asyncio.shield(asyncio.to_thread(act_on, acts))

    async def relay(self) -> RelayReport:
        """Send every invalidation that has committed and was not sent yet; one round.

        Raises:
            ServerUnavailableError: Redis did not answer; nothing is lost.
            SettingsError: The engine leads to a standby.
        """
        return await asyncio.to_thread(self._backing.relay)

    def stats(self) -> CacheStats:
        """Return what this process has done with the cache."""
        return self._backing.counters.stats()

    async def close(self) -> None:
        """Close idle connections to Redis."""
        await self._links.close()
        self._backing.links.close()

    async def _standing(self) -> Standing | None:
        # The check blocks on sockets; while it stands, there is nothing to check.
        return self._backing.gate.unchecked() or await asyncio.to_thread(
            self._backing.gate.standing
        )

    async def _read(
        self, codec: Codec[T], wanted: Wanted, load: AsyncLoader[T], *, anew: bool = False
    ) -> T:
        standing = None if anew else await self._standing()
        if standing is not None:
            found = await self._glance(wanted, standing)
            if (stored := self._backing.fresh(codec, found)) is not None:
                return stored.value

        async def load_it(conn: AsyncConnection, _: Sequence[int]) -> Sequence[T]:
            return [await load(conn)]

        return await self._join(Reading((wanted,), codec, load_it, anew))

    async def _glance(self, wanted: Wanted, standing: Standing) -> Fetched:
        command = glance_at(wanted, prefix=standing.prefix)
        try:
            reply = await self._links.call(command, identity=standing.server)
        except CacheSilence:
            return Fetched(None)
        return glimpse_of(reply)

    async def _read_many(
        self,
        codec: Codec[T],
        wanted: Callable[[K], Wanted],
        keys: Iterable[K],
        load: AsyncManyLoader[K, T],
    ) -> dict[K, Any]:
        found: dict[K, Any] = {}
        distinct = [*dict.fromkeys(keys)]
        for start in range(0, len(distinct), ENTRIES_PER_CALL):
            some = distinct[start : start + ENTRIES_PER_CALL]
            reading: AsyncReading[T] = Reading([*map(wanted, some)], codec, _of_missing(some, load))
            # Loads are not shared within the process: by their leases they are, with everybody.
            for key, outcome in zip(some, await self._fly(reading, Turns()), strict=True):
                self._backing.count(outcome, has_joined=False)
                found[key] = outcome.value
        return found

    async def _join(self, reading: AsyncReading[T]) -> T:
        [(entry, _)] = reading.wanted
        for has_waited in (False, True):
            flight = self._flights.get(entry)
            leads = flight is None or flight.kind != reading.kind
            if flight is None or leads:
                flight = self._take_off(entry, reading)
            turn = flight.turns.count
            outcome: Outcome[T] | None = await self._outcome_of(flight.task, waits=not leads)
            if outcome is None:
                break  # whoever loads is slow; its fate is not ours
            # Another's outcome must not be older than this call, as in `Flights.join`.
            is_younger = outcome.may_be_shared and turn < flight.turns.count
            if leads or has_waited or is_younger:
                self._backing.count(outcome, has_joined=not leads)
                return outcome.value
        [loaded] = await self._load(reading, reading.unleased())
        return loaded.value

    def _take_off(self, entry: str, reading: AsyncReading[T]) -> "_Flight":
        turns = Turns()

        async def fly() -> Outcome[T]:
            [outcome] = await self._fly(reading, turns)
            return outcome

        task = asyncio.create_task(fly())
        task.add_done_callback(lambda done: self._landed(entry, done))
        [(_, tags)] = reading.wanted
        flight = self._flights[entry] = _Flight(task, reading.kind, tags, turns)
        return flight

    def _detach(self, entries: Sequence[str], tags: Sequence[str]) -> None:
        """Let nobody join these loads that are under way, as `Flights.detach`."""
        for entry in entries:
            self._flights.pop(entry, None)
        for entry, flight in [*self._flights.items()] if tags else []:
            if not set(tags).isdisjoint(flight.tags):
                self._flights.pop(entry, None)

    async def _outcome_of(
        self, task: asyncio.Task[Outcome[T]], *, waits: bool
    ) -> Outcome[T] | None:
        # The load is a task of its own: a cancelled caller leaves it to the others.
        shielded = asyncio.shield(task)
        if not waits:
            return await shielded
        done, _ = await asyncio.wait({shielded}, timeout=self.policy.wait_seconds)
        return shielded.result() if done else None

    def _landed(self, entry: str, task: asyncio.Task[Outcome[Any]]) -> None:
        flight = self._flights.get(entry)
        if flight is not None and flight.task is task:
            del self._flights[entry]
        if not task.cancelled():
            task.exception()  # if every caller was cancelled, nobody else asks for it

    async def _fly(self, reading: AsyncReading[T], turns: Turns) -> list[Outcome[T]]:
        standing = await self._standing()
        if standing is None:
            self._backing.counters.add("bypassed", len(reading.wanted))
            loaded = await self._load(reading, reading.unleased())
            return [Outcome(one.value, "loaded") for one in loaded]
        flow = reading.flow(self.policy)

        async def perform(step: AnyStep) -> object:
            if isinstance(step, Fetch | Fill):
                turns.begin()
            return await self._perform(step, standing, reading)

        return await _drive(flow, perform)

    async def _perform(self, step: AnyStep, standing: Standing, reading: AsyncReading[T]) -> object:
        match step:
            case Load():
                if step.leased:
                    failpoint("cache.lease-granted")
                return await self._load(reading, step)
            case Look():
                return time() * 1000, 1 - random.random()  # noqa: S311 -- spreads refreshes
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None
            case Note(what, amount):
                self._backing.counters.add(what, amount)
                return None
            case _:
                if isinstance(step, Fill):
                    failpoint("cache.value-loaded")
                command = command_for(step, prefix=standing.prefix, policy=self.policy)
                return answer_to(step, await self._links.call(command, identity=standing.server))

    async def _load(self, reading: AsyncReading[T], step: Load) -> list[Loaded[T]]:
        if step.leased:
            return await self._load_now(reading, step)
        # What protects the database while Redis does not.
        try:
            async with asyncio.timeout(self.policy.wait_seconds):
                await self._bulkhead.acquire()
        except TimeoutError:
            raise CacheBusyError(waited_seconds=self.policy.wait_seconds) from None
        try:
            return await self._load_now(reading, step)
        finally:
            self._bulkhead.release()

    async def _load_now(self, reading: AsyncReading[T], step: Load) -> list[Loaded[T]]:
        began = perf_counter()
        # In autocommit mode each statement sees what had committed when it began: nothing that
        # is older than the lease, whatever the isolation level of the application.
        async with self._engine.connect() as conn:
            _ = await conn.execution_options(isolation_level="AUTOCOMMIT")
            from_standby = await conn.run_sync(is_standby)
            values = await reading.load(conn, step.places)
        return self._backing.packed(
            reading.codec, values, step, seconds=perf_counter() - began, is_standby=from_standby
        )


def _of_missing(
    keys: Sequence[K], load: AsyncManyLoader[K, T]
) -> Callable[[AsyncConnection, Sequence[int]], Awaitable[Sequence[T]]]:
    async def load_places(conn: AsyncConnection, places: Sequence[int]) -> Sequence[T]:
        missing = [keys[place] for place in places]
        return values_of(missing, await load(conn, missing))

    return load_places


async def _drive(flow: Flow[T], perform: Callable[[AnyStep], Awaitable[object]]) -> T:
    resume: Callable[[Any], AnyStep] = flow.send
    answer: object = None
    while True:
        try:
            step = resume(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        try:
            resume, answer = flow.send, await perform(step)
        except BaseException as error:  # noqa: BLE001 -- the flow decides, and raises it again
            resume, answer = flow.throw, error
