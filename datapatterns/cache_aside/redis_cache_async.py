"""Cache-aside for asyncio: the same protocol, driven by coroutines."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter, time
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from datapatterns.aio import transaction
from datapatterns.cache_aside.backing import Backing
from datapatterns.cache_aside.cached_function import refuse_a_second, value_type_of
from datapatterns.cache_aside.cached_function_async import AsyncCachedFunction
from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.counting import CacheStats
from datapatterns.cache_aside.flights import Turns
from datapatterns.cache_aside.flow import (
    AnyStep,
    CacheSilence,
    Fetch,
    Fill,
    Flow,
    Load,
    Loaded,
    Look,
    Note,
    Outcome,
    Pause,
    read_through,
)
from datapatterns.cache_aside.keys import Key, entry_of
from datapatterns.cache_aside.links_async import AsyncLinks
from datapatterns.cache_aside.policy import DEFAULT_POLICY, CachePolicy
from datapatterns.cache_aside.redis_commands import answer_to, command_for, value_key
from datapatterns.cache_aside.relaying import RelayReport, Standing
from datapatterns.cache_aside.standby import is_standby
from datapatterns.cache_aside.writing import AfterCommit, act_on, collecting
from datapatterns.errors import CacheBusyError
from datapatterns.failpoints import failpoint
from datapatterns.outcomes import find_unknown_outcome
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.telemetry import SILENT, Observer

P = ParamSpec("P")
T = TypeVar("T")
AsyncLoader = Callable[[AsyncConnection], Awaitable[T]]


class _Flight(NamedTuple):
    task: asyncio.Task[Outcome[Any]]
    codec: Codec[Any]
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
            detach=lambda entry: self._flights.pop(entry, None),
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

    async def get_or_load(self, key: Key, load: AsyncLoader[T], *, value_type: object = Any) -> T:
        """Return the value under ``key``; if there is none, ``load`` it and keep it.

        As `Cache.get_or_load`. A cancelled caller does not cancel the load that others wait for.
        """
        codec: Codec[T] = self._backing.codec(value_type)
        return await self._read(entry_of(self.name, key), codec, load)

    def cached(
        self, load: Callable[Concatenate[AsyncConnection, P], Awaitable[T]]
    ) -> AsyncCachedFunction[P, T]:
        """Make a coroutine function that takes ``conn`` first into one that reads through.

        Raises:
            SettingsError: The cache holds another function's results already.
        """
        refuse_a_second(self.name, self._cached, load)
        codec: Codec[T] = self._backing.codec(value_type_of(load))
        cached = AsyncCachedFunction(load, cache=self, read=lambda e, go: self._read(e, codec, go))
        self._cached = cached
        return cached

    def invalidate_in(self, writer: Connection | Session, *keys: Key) -> None:
        """Forget ``keys`` if and when the transaction commits, as `Cache.invalidate_in`.

        An operation like others: ``await conn.run_sync(cache.invalidate_in, 5)``.
        """
        self._backing.invalidate_in(writer, keys)

    async def invalidate(self, *keys: Key) -> None:
        """Forget ``keys`` now; it happens in the end even if Redis is away."""
        async with self.writes() as conn:
            await conn.run_sync(self._backing.invalidate_in, keys)

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

    async def _read(self, entry: str, codec: Codec[T], load: AsyncLoader[T]) -> T:
        standing = await self._standing()
        if standing is not None:
            raw = await self._glance(entry, standing)
            if (stored := self._backing.fresh(codec, raw)) is not None:
                return stored.value
        return await self._join(entry, codec, load)

    async def _glance(self, entry: str, standing: Standing) -> bytes | None:
        command = ("GET", value_key(standing.prefix, entry))
        try:
            raw = await self._links.call(command, identity=standing.server)
        except CacheSilence:
            return None
        return raw if isinstance(raw, bytes) else None

    async def _join(self, entry: str, codec: Codec[T], load: AsyncLoader[T]) -> T:
        for has_waited in (False, True):
            flight = self._flights.get(entry)
            leads = flight is None or flight.codec is not codec
            if flight is None or leads:
                flight = self._take_off(entry, codec, load)
            turn = flight.turns.count
            outcome: Outcome[T] | None = await self._outcome_of(flight.task, waits=not leads)
            if outcome is None:
                break  # whoever loads is slow; its fate is not ours
            # Another's outcome must not be older than this call, as in `Flights.join`.
            is_younger = outcome.may_be_shared and turn < flight.turns.count
            if leads or has_waited or is_younger:
                self._backing.count(outcome, has_joined=not leads)
                return outcome.value
        return (await self._load(codec, load, leased=False)).value

    def _take_off(self, entry: str, codec: Codec[T], load: AsyncLoader[T]) -> "_Flight":
        turns = Turns()
        task = asyncio.create_task(self._fly(entry, codec, load, turns))
        task.add_done_callback(lambda done: self._landed(entry, done))
        flight = self._flights[entry] = _Flight(task, codec, turns)
        return flight

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

    async def _fly(
        self, entry: str, codec: Codec[T], load: AsyncLoader[T], turns: Turns
    ) -> Outcome[T]:
        standing = await self._standing()
        if standing is None:
            self._backing.counters.add("bypassed")
            return Outcome((await self._load(codec, load, leased=False)).value, "loaded")
        flow = read_through(entry, codec=codec, policy=self.policy, token=uuid4().hex)

        async def perform(step: AnyStep) -> object:
            if isinstance(step, Fetch | Fill):
                turns.begin()
            return await self._perform(step, standing, codec, load)

        return await _drive(flow, perform)

    async def _perform(
        self, step: AnyStep, standing: Standing, codec: Codec[T], load: AsyncLoader[T]
    ) -> object:
        match step:
            case Load(leased):
                if leased:
                    failpoint("cache.lease-granted")
                return await self._load(codec, load, leased=leased)
            case Look():
                return time() * 1000, 1 - random.random()  # noqa: S311 -- spreads refreshes
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None
            case Note(what):
                self._backing.counters.add(what)
                return None
            case _:
                if isinstance(step, Fill):
                    failpoint("cache.value-loaded")
                command = command_for(step, prefix=standing.prefix, policy=self.policy)
                return answer_to(step, await self._links.call(command, identity=standing.server))

    async def _load(self, codec: Codec[T], load: AsyncLoader[T], *, leased: bool) -> Loaded[T]:
        if leased:
            return await self._load_now(codec, load, leased=True)
        # What protects the database while Redis does not.
        try:
            async with asyncio.timeout(self.policy.wait_seconds):
                await self._bulkhead.acquire()
        except TimeoutError:
            raise CacheBusyError(waited_seconds=self.policy.wait_seconds) from None
        try:
            return await self._load_now(codec, load, leased=False)
        finally:
            self._bulkhead.release()

    async def _load_now(self, codec: Codec[T], load: AsyncLoader[T], *, leased: bool) -> Loaded[T]:
        began = perf_counter()
        # In autocommit mode each statement sees what had committed when it began: nothing that
        # is older than the lease, whatever the isolation level of the application.
        async with self._engine.connect() as conn:
            _ = await conn.execution_options(isolation_level="AUTOCOMMIT")
            from_standby = await conn.run_sync(is_standby)
            loaded = await load(conn)
        return self._backing.packed(
            codec, loaded, seconds=perf_counter() - began, leased=leased, is_standby=from_standby
        )


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
