"""Carry out the cache-aside protocol in threads."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import BoundedSemaphore
from time import perf_counter, sleep, time
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from datapatterns.cache_aside.backing import Backing
from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.flights import Flights, Turns
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
Loader: TypeAlias = Callable[[Connection], T]
ManyLoader: TypeAlias = Callable[[Connection, list[K]], Mapping[K, T]]
SyncReading: TypeAlias = Reading[T, Callable[[Connection, Sequence[int]], Sequence[T]]]


class Driver:
    """Reads through one cache.

    Args:
        backing: What the cache stands on.
        flights: The loads under way in this process.
        load_from: A replica to load from where it is not behind.

    Attributes:
        policy: The times to live by where none of a value's own are named.
    """

    def __init__(self, backing: Backing, flights: Flights, load_from: Engine | None = None) -> None:
        self._backing = backing
        self.policy = backing.policy
        self._local = backing.local
        self._flights = flights
        self._load_from = load_from
        if load_from is not None:
            backing.refuse_replica()
        self._bulkhead = BoundedSemaphore(backing.policy.loads_at_once)

    def read(
        self,
        codec: Codec[T],
        policy: CachePolicy,
        wanted: Wanted,
        load: Loader[T],
        *,
        anew: bool = False,
    ) -> T:
        """Return one value; others of this process share its load."""
        # The hot path: nothing is made that a hit does not need.
        standing = None if anew else self._backing.gate.standing()
        if standing is not None:
            mark = None
            if (local := self._local) is not None:
                if (slot := local.find(codec, wanted)) is not None:
                    kept: T = slot.served()
                    return kept
                mark = local.expect(wanted, standing)
            command = glance_at(wanted, standing.prefix)
            try:
                found = glimpse_of(self._backing.links.fetch(command, standing.server))
            except CacheSilence:
                found = Fetched(None)
            if (stored := self._backing.fresh(codec, policy, found, mark)) is not None:
                return stored.value
        return self._join(Reading((wanted,), codec, policy, lambda conn, _: [load(conn)], anew))

    def read_within(
        self,
        codec: Codec[T],
        policy: CachePolicy,
        wanted: Wanted,
        load: Loader[T],
        within: Connection | Session,
        *,
        allow_nonrepeatable: bool = False,
    ) -> T:
        """Return one value as the transaction of ``within`` has to see it."""
        view = self._backing.view_of(within, wanted)
        if view is None:
            return self.read(codec, policy, wanted, load)
        # Shared with nobody: it is right for this transaction.
        reading: SyncReading[T] = Reading((wanted,), codec, policy, lambda conn, _: [load(conn)])
        standing = None if view.has_written else self._backing.gate.standing()
        if standing is None:
            self._backing.counters.add("bypassed")
            [loaded] = self._load_on(view.conn, reading, reading.unleased(), None)
            return loaded.value

        def perform(step: AnyStep) -> object:
            if isinstance(step, Load):
                return self._load_on(view.conn, reading, step, standing)
            return self._perform(step, standing, reading)

        flow = reading.flow_in_snapshot(may_hit=allow_nonrepeatable)
        [outcome] = _drive(flow, perform)
        self._backing.count(outcome, has_joined=False)
        return outcome.value

    def _load_on(
        self, conn: Connection, reading: SyncReading[T], step: Load, standing: Standing | None
    ) -> list[Loaded[T]]:
        """Load in a transaction of a caller's, to be stored only if that is not too old."""
        began = perf_counter()
        values = reading.load(conn, step.places)
        seconds = perf_counter() - began
        is_current = False
        if step.leased and standing is not None:
            seen = self._backing.seen_by(conn)
            is_current = seen is not None and self._admits(seen, step, standing)
        return self._backing.packed(reading, values, step, seconds=seconds, is_current=is_current)

    def _admits(self, seen: Snapshot, step: Load, standing: Standing) -> bool:
        """Return whether a snapshot shows all that was invalidated before the lease."""
        try:
            reply = self._backing.links.call(survey_of(standing.prefix), identity=standing.server)
            return survey_in(reply).admits(seen, step.writers)
        except CacheSilence:
            return False

    def read_many(
        self,
        codec: Codec[T],
        policy: CachePolicy,
        wanted: Callable[[K], Wanted],
        keys: Iterable[K],
        load: ManyLoader[K, T],
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
            reading: SyncReading[T] = Reading(
                [*map(wanted, some)], codec, policy, _of_missing(some, load)
            )
            # Loads are not shared within the process: by their leases they are, with everybody.
            for key, outcome in zip(some, self._fly(reading, Turns()), strict=True):
                self._backing.count(outcome, has_joined=False)
                found[key] = outcome.value
        return found

    def _join(self, reading: SyncReading[T]) -> T:
        has_flown = False
        [(entry, tags)] = reading.wanted

        def fly(turns: Turns) -> Outcome[T]:
            nonlocal has_flown
            has_flown = True
            [outcome] = self._fly(reading, turns)
            return outcome

        outcome = self._flights.join(
            entry, fly, wait_seconds=self.policy.wait_seconds, kind=reading.kind, tags=tags
        )
        if outcome is None:  # whoever loads is slow; its fate is not ours
            [loaded] = self._load(reading, reading.unleased())
            return loaded.value
        self._backing.count(outcome, has_joined=not has_flown)
        return outcome.value

    def _fly(self, reading: SyncReading[T], turns: Turns) -> list[Outcome[T]]:
        standing = self._backing.gate.standing()
        if standing is None:
            self._backing.counters.add("bypassed", len(reading.wanted))
            loaded = self._load(reading, reading.unleased())
            return [Outcome(one.value, "loaded") for one in loaded]
        flow = reading.flow(with_writers=self._load_from is not None)

        def perform(step: AnyStep) -> object:
            if isinstance(step, Fetch | Fill):
                turns.begin()
            return self._perform(step, standing, reading)

        return _drive(flow, perform)

    def _perform(self, step: AnyStep, standing: Standing, reading: SyncReading[T]) -> object:
        match step:
            case Load():
                if step.leased:
                    failpoint("cache.lease-granted")
                    if (loaded := self._load_elsewhere(reading, step, standing)) is not None:
                        return loaded
                return self._load(reading, step)
            case Look():
                return time() * 1000, 1 - random.random()  # noqa: S311 -- spreads refreshes
            case Pause(seconds):
                sleep(seconds)
                return None
            case Note(what, amount):
                self._backing.counters.note(what, amount)
                return None
            case _:
                if isinstance(step, Fill):
                    failpoint("cache.value-loaded")
                marks = self._backing.expected(step, reading, standing)
                command = command_for(step, prefix=standing.prefix, policy=reading.policy)
                reply = self._backing.links.call(command, identity=standing.server)
                answer = answer_to(step, reply)
                self._backing.settle(step, reading, marks, answer)
                return answer

    def _load_elsewhere(
        self, reading: SyncReading[T], step: Load, standing: Standing
    ) -> list[Loaded[T]] | None:
        """Load from the replica; None if there is none, or it is away or behind."""
        replica = self._backing.replica
        if self._load_from is None or not replica.allows():
            return None
        began = perf_counter()
        try:
            with self._load_from.connect() as conn:
                conn.execution_options(isolation_level="AUTOCOMMIT")
                seen = replica.seen_before(conn)
                replica.succeeded()
                if seen is None or not self._admits(seen, step, standing):
                    return None
                values = reading.load(conn, step.places)
        except DBAPIError as error:
            if not replica.is_away(error):
                raise
            return None
        self._backing.counters.add("replica_loads", len(values))
        return self._backing.packed(
            reading, values, step, seconds=perf_counter() - began, is_current=True
        )

    def _load(self, reading: SyncReading[T], step: Load) -> list[Loaded[T]]:
        if step.leased:
            return self._load_now(reading, step)
        # What protects the database while Redis does not.
        began = perf_counter()
        if not self._bulkhead.acquire(timeout=self.policy.wait_seconds):
            self._backing.counters.add("busy")
            raise CacheBusyError(waited_seconds=self.policy.wait_seconds)
        self._backing.counters.waited(perf_counter() - began)
        try:
            return self._load_now(reading, step)
        finally:
            self._bulkhead.release()

    def _load_now(self, reading: SyncReading[T], step: Load) -> list[Loaded[T]]:
        began = perf_counter()
        # In autocommit mode each statement sees what had committed when it began: nothing that
        # is older than the lease, whatever the isolation level of the application.
        with self._backing.engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT")
            is_current = not is_standby(conn)
            values = reading.load(conn, step.places)
        return self._backing.packed(
            reading, values, step, seconds=perf_counter() - began, is_current=is_current
        )


def _of_missing(
    keys: Sequence[K], load: ManyLoader[K, T]
) -> Callable[[Connection, Sequence[int]], Sequence[T]]:
    def load_places(conn: Connection, places: Sequence[int]) -> list[T]:
        missing = [keys[place] for place in places]
        return values_of(missing, load(conn, missing))

    return load_places


def _drive(flow: Flow[T], perform: Callable[[AnyStep], object]) -> T:
    resume: Callable[[Any], AnyStep] = flow.send
    answer: object = None
    while True:
        try:
            step = resume(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        try:
            resume, answer = flow.send, perform(step)
        except BaseException as error:  # noqa: BLE001 -- the flow decides, and raises it again
            resume, answer = flow.throw, error
