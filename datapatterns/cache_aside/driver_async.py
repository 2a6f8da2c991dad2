"""Carry out the cache-aside protocol in tasks of one event loop."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import perf_counter, time
from typing import Any, TypeAlias, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from datapatterns.cache_aside.backing import Backing
from datapatterns.cache_aside.cluster_links_async import AnyAsyncLinks
from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.flights import Turns
from datapatterns.cache_aside.flights_async import AsyncFlight, AsyncFlights
from datapatterns.cache_aside.keys import Key, distinct
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.reading import Reading, values_of
from datapatterns.cache_aside.redis_commands import (
    ENTRIES_PER_CALL,
    answer_to,
    command_for,
    glance_at,
    glimpse_of,
    survey_in,
    survey_of,
)
from datapatterns.cache_aside.standby import is_standby
from datapatterns.cache_aside.standing import Standing
from datapatterns.cache_aside.steps import (
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
from datapatterns.change_log.snapshots import Snapshot
from datapatterns.errors import CacheBusyError
from datapatterns.failpoints import failpoint

T = TypeVar("T")
K = TypeVar("K", bound=Key)
AsyncLoader: TypeAlias = Callable[[AsyncConnection], Awaitable[T]]
AsyncManyLoader: TypeAlias = Callable[[AsyncConnection, list[K]], Awaitable[Mapping[K, T]]]
AsyncReading: TypeAlias = Reading[
    T, Callable[[AsyncConnection, Sequence[int]], Awaitable[Sequence[T]]]
]


class AsyncDriver:
    """Reads through one cache.

    Args:
        engine: Where values are loaded from.
        backing: What the cache stands on.
        links: The way to Redis.
        flights: The loads under way.
        load_from: A replica to load from where it is not behind.

    Attributes:
        policy: The times to live by where none of a value's own are named.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        backing: Backing,
        links: AnyAsyncLinks,
        flights: AsyncFlights,
        load_from: AsyncEngine | None,
    ) -> None:
        self._engine = engine
        self._backing = backing
        self._links = links
        self.policy = backing.policy
        self._local = backing.local
        self._flights = flights
        self._load_from = load_from
        if load_from is not None:
            backing.refuse_replica()
        self._bulkhead = asyncio.Semaphore(backing.policy.loads_at_once)

    async def _standing(self) -> Standing | None:
        # The check blocks on sockets; while it stands, there is nothing to check.
        return self._backing.gate.unchecked() or await asyncio.to_thread(
            self._backing.gate.standing
        )

    async def read(
        self,
        codec: Codec[T],
        policy: CachePolicy,
        wanted: Wanted,
        load: AsyncLoader[T],
        *,
        anew: bool = False,
    ) -> T:
        """Return one value; other tasks share its load."""
        standing = None
        if not anew:
            standing = self._backing.gate.unchecked() or await self._standing()
        if standing is not None:
            mark = None
            if (local := self._local) is not None:
                if (slot := local.find(codec, wanted)) is not None:
                    kept: T = slot.served()
                    return kept
                mark = local.expect(wanted, standing)
            found = await self._glance(wanted, standing)
            if (stored := self._backing.fresh(codec, policy, found, mark)) is not None:
                return stored.value

        async def load_it(conn: AsyncConnection, _: Sequence[int]) -> Sequence[T]:
            return [await load(conn)]

        return await self._join(Reading((wanted,), codec, policy, load_it, anew))

    async def _glance(self, wanted: Wanted, standing: Standing) -> Fetched:
        command = glance_at(wanted, standing.prefix)
        try:
            reply = await self._links.call(command, identity=standing.server)
        except CacheSilence:
            return Fetched(None)
        return glimpse_of(reply)

    async def read_within(
        self,
        codec: Codec[T],
        policy: CachePolicy,
        wanted: Wanted,
        load: AsyncLoader[T],
        within: AsyncConnection | AsyncSession,
        *,
        allow_nonrepeatable: bool = False,
    ) -> T:
        """Return one value as the transaction of ``within`` has to see it."""
        view = await within.run_sync(self._backing.view_of, wanted)
        if view is None:
            return await self.read(codec, policy, wanted, load)
        conn = within if isinstance(within, AsyncConnection) else await within.connection()

        async def load_it(conn: AsyncConnection, _: Sequence[int]) -> Sequence[T]:
            return [await load(conn)]

        # Shared with nobody: it is right for this transaction.
        reading: AsyncReading[T] = Reading((wanted,), codec, policy, load_it)
        standing = None if view.has_written else await self._standing()
        if standing is None:
            self._backing.counters.add("bypassed")
            [loaded] = await self._load_on(conn, reading, reading.unleased(), None)
            return loaded.value

        async def perform(step: AnyStep) -> object:
            if isinstance(step, Load):
                return await self._load_on(conn, reading, step, standing)
            return await self._perform(step, standing, reading)

        flow = reading.flow_in_snapshot(may_hit=allow_nonrepeatable)
        [outcome] = await _drive(flow, perform)
        self._backing.count(outcome, has_joined=False)
        return outcome.value

    async def _load_on(
        self, conn: AsyncConnection, reading: AsyncReading[T], step: Load, standing: Standing | None
    ) -> list[Loaded[T]]:
        """Load in a transaction of a caller's, as `Driver._load_on`."""
        began = perf_counter()
        values = await reading.load(conn, step.places)
        seconds = perf_counter() - began
        is_current = False
        if step.leased and standing is not None:
            seen = await conn.run_sync(self._backing.seen_by)
            is_current = seen is not None and await self._admits(seen, step, standing)
        return self._backing.packed(reading, values, step, seconds=seconds, is_current=is_current)

    async def _admits(self, seen: Snapshot, step: Load, standing: Standing) -> bool:
        try:
            reply = await self._links.call(survey_of(standing.prefix), identity=standing.server)
            return survey_in(reply).admits(seen, step.writers)
        except CacheSilence:
            return False

    async def read_many(
        self,
        codec: Codec[T],
        policy: CachePolicy,
        wanted: Callable[[K], Wanted],
        keys: Iterable[K],
        load: AsyncManyLoader[K, T],
    ) -> dict[K, Any]:
        """Return the values under ``keys``, each once, by at most so many at a time."""
        found: dict[K, Any] = {}
        asked = distinct(keys)
        for start in range(0, len(asked), ENTRIES_PER_CALL):
            some = self._backing.left_after(
                codec, wanted, asked[start : start + ENTRIES_PER_CALL], found
            )
            if not some:
                continue
            reading: AsyncReading[T] = Reading(
                [*map(wanted, some)], codec, policy, _of_missing(some, load)
            )
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

    def _take_off(self, entry: str, reading: AsyncReading[T]) -> AsyncFlight:
        turns = Turns()

        async def fly() -> Outcome[T]:
            [outcome] = await self._fly(reading, turns)
            return outcome

        task = asyncio.create_task(fly())
        task.add_done_callback(lambda done: self._landed(entry, done))
        [(_, tags)] = reading.wanted
        flight = self._flights[entry] = AsyncFlight(task, reading.kind, tags, turns)
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

    async def _fly(self, reading: AsyncReading[T], turns: Turns) -> list[Outcome[T]]:
        standing = await self._standing()
        if standing is None:
            self._backing.counters.add("bypassed", len(reading.wanted))
            loaded = await self._load(reading, reading.unleased())
            return [Outcome(one.value, "loaded") for one in loaded]
        flow = reading.flow(with_writers=self._load_from is not None)

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
                    if (loaded := await self._load_elsewhere(reading, step, standing)) is not None:
                        return loaded
                return await self._load(reading, step)
            case Look():
                return time() * 1000, 1 - random.random()  # noqa: S311 -- spreads refreshes
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None
            case Note(what, amount):
                self._backing.counters.note(what, amount)
                return None
            case _:
                if isinstance(step, Fill):
                    failpoint("cache.value-loaded")
                marks = self._backing.expected(step, reading, standing)
                command = command_for(step, prefix=standing.prefix, policy=reading.policy)
                reply = await self._links.call(command, identity=standing.server)
                answer = answer_to(step, reply)
                self._backing.settle(step, reading, marks, answer)
                return answer

    async def _load_elsewhere(
        self, reading: AsyncReading[T], step: Load, standing: Standing
    ) -> list[Loaded[T]] | None:
        """Load from the replica, as `Driver._load_elsewhere`."""
        replica = self._backing.replica
        if self._load_from is None or not replica.allows():
            return None
        began = perf_counter()
        try:
            async with self._load_from.connect() as conn:
                _ = await conn.execution_options(isolation_level="AUTOCOMMIT")
                seen = await conn.run_sync(replica.seen_before)
                replica.succeeded()
                if seen is None or not await self._admits(seen, step, standing):
                    return None
                values = await reading.load(conn, step.places)
        except DBAPIError as error:
            if not replica.is_away(error):
                raise
            return None
        self._backing.counters.add("replica_loads", len(values))
        return self._backing.packed(
            reading, values, step, seconds=perf_counter() - began, is_current=True
        )

    async def _load(self, reading: AsyncReading[T], step: Load) -> list[Loaded[T]]:
        if step.leased:
            return await self._load_now(reading, step)
        # What protects the database while Redis does not.
        began = perf_counter()
        try:
            async with asyncio.timeout(self.policy.wait_seconds):
                await self._bulkhead.acquire()
        except TimeoutError:
            self._backing.counters.add("busy")
            raise CacheBusyError(waited_seconds=self.policy.wait_seconds) from None
        self._backing.counters.waited(perf_counter() - began)
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
            is_current = not await conn.run_sync(is_standby)
            values = await reading.load(conn, step.places)
        return self._backing.packed(
            reading, values, step, seconds=perf_counter() - began, is_current=is_current
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
