"""Cache-aside for threads: read through Redis, write to PostgreSQL, forget after the commit."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import BoundedSemaphore
from time import perf_counter, sleep, time
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, overload

from redis import Redis
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

from datapatterns.cache_aside.backing import Backing
from datapatterns.cache_aside.cached_function import (
    CachedFunction,
    Calls,
    refuse_a_second,
    value_type_of,
)
from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.counting import CacheStats
from datapatterns.cache_aside.flights import Flights, Turns
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
from datapatterns.cache_aside.watching import watch_models
from datapatterns.cache_aside.writing import AfterCommit, act_on, collecting
from datapatterns.errors import CacheBusyError
from datapatterns.failpoints import failpoint
from datapatterns.outcomes import find_unknown_outcome
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.telemetry import SILENT, Observer
from datapatterns.transactions import committing

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=Key)
Loader: TypeAlias = Callable[[Connection], T]
ManyLoader: TypeAlias = Callable[[Connection, list[K]], Mapping[K, T]]
SyncReading: TypeAlias = Reading[T, Callable[[Connection, Sequence[int]], Sequence[T]]]


class Cache:
    """Keeps what is slow to load in Redis or Valkey; share one among threads.

    A value is loaded on a short connection of the cache's own, so what it stores was committed
    and is no older than the lease it loads under. Once the invalidations of all committed writes
    have arrived, an entry is absent or equals the database.

    Args:
        redis: A URL, or a client whose settings are used (its time-outs are the policy's).
        engine: The primary of the database.
        name: What the cache holds, such as ``product``; part of every key.
        policy: The times to live by.
        schema: Where the library's tables live.
        target: The name of this Redis; its keys begin with it. One name for one Redis.
        observer: Where counts and durations go.
    """

    def __init__(  # noqa: PLR0913 -- a composition root of its own
        self,
        redis: str | Redis,
        engine: Engine,
        *,
        name: str,
        policy: CachePolicy = DEFAULT_POLICY,
        schema: str = DEFAULT_SCHEMA,
        target: str = "datapatterns",
        observer: Observer = SILENT,
    ) -> None:
        self._flights = Flights()
        self._backing = Backing(
            redis,
            engine,
            name=name,
            policy=policy,
            schema=schema,
            target=target,
            observer=observer,
            detach=self._flights.detach,
        )
        self._bulkhead = BoundedSemaphore(policy.loads_at_once)
        self._cached: CachedFunction[..., Any] | None = None

    @property
    def name(self) -> str:
        """What the cache holds."""
        return self._backing.name

    @property
    def policy(self) -> CachePolicy:
        """The times to live by."""
        return self._backing.policy

    def get_or_load(
        self, key: Key, load: Loader[T], *, value_type: object = Any, tags: Iterable[str] = ()
    ) -> T:
        """Return the value under ``key``; if there is none, ``load`` it and keep it.

        Among concurrent callers, in this process and others, one loads and the others wait. A
        silent Redis costs time, never the answer. None is remembered, too, but not for long.

        Args:
            key: What the loader's result depends on.
            load: Reads the value on the connection it is given; that is in autocommit mode.
            value_type: What comes back: a dataclass, a ``msgspec.Struct``, a builtin or a
                composition of them. By default plain data.
            tags: What else the value depends on, see `tag`; it is forgotten with any of them.
                Always the same for one key.

        Raises:
            CacheKeyError: The key has a part that is equal to others without being identical.
            UncacheableValueError: The value does not come back as ``value_type``.
            CacheBusyError: Redis is away, and so many loads are under way that no place got
                free in time.
        """
        codec: Codec[T] = self._backing.codec(value_type)
        return self._read(codec, Wanted(entry_of(self.name, key), checked_tags(tags)), load)

    def get_many(
        self,
        keys: Iterable[K],
        load: ManyLoader[K, T],
        *,
        value_type: object = Any,
        tags: Callable[[K], Iterable[str]] = no_tags,
    ) -> dict[K, T | None]:
        """Return the values under ``keys``; those that are missing are loaded together and kept.

        One round trip finds what is there, and ``load`` is called once, for 500 keys at most
        at a time.

        Args:
            keys: As for `get_or_load`; duplicates count once.
            load: Returns the values by key; for a key that it leaves out, None is remembered.
            value_type: As for `get_or_load`, of each value.
            tags: What the value under a key depends on besides.

        Raises:
            SettingsError: The loader returned a key that was not asked for.
            Exception: The errors of `get_or_load`.
        """
        codec: Codec[T] = self._backing.codec(value_type)

        def wanted(key: K) -> Wanted:
            return Wanted(entry_of(self.name, key), checked_tags(tags(key)))

        return self._read_many(codec, wanted, keys, load)

    @overload
    def cached(self, load: Callable[Concatenate[Connection, P], T]) -> CachedFunction[P, T]: ...

    @overload
    def cached(
        self, *, tags: Callable[P, Iterable[str]]
    ) -> Callable[[Callable[Concatenate[Connection, P], T]], CachedFunction[P, T]]: ...

    def cached(self, load: Any = None, *, tags: Any = None) -> Any:
        """Make a function that takes ``conn`` first into one that reads through this cache.

        The return annotation says what comes back. A cache holds the results of one function.

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

        self._cached = CachedFunction(
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
        """Forget ``keys`` if and when the transaction of ``writer`` commits.

        And whatever depends on ``tags``, in all caches of this target. It is recorded in that
        transaction. A session tells of its commit, and so does a connection from `writes`: then it
        is done before the commit returns to the caller. For any other connection the relay does
        it, at most ``vouched_seconds`` later; so it does for a session that joined the transaction
        of such a connection. It never fails for want of Redis.

        Raises:
            IsolationLevelError: The writer is in autocommit mode.
            SettingsError: It writes to another database, or is an async one.
        """
        self._backing.invalidate_in(writer, keys, tags)

    def invalidate(self, *keys: Key, tags: Iterable[str] = ()) -> None:
        """Forget ``keys`` now, for instance after a write that nobody recorded.

        And whatever depends on ``tags``, in all caches of this target.

        Recorded in a transaction of its own first, so that it happens in the end even if Redis is
        away.
        """
        # Nothing else is written, so that an engine in autocommit mode is right here, too.
        with self._connection(None) as own:
            own.execution_options(isolation_level="READ COMMITTED")
            with self.writes(own) as conn:
                self._backing.invalidate_in(conn, keys, tags)

    @contextmanager
    def writes(self, bind: Engine | Connection | None = None) -> Iterator[Connection]:
        """Open a transaction and commit it, like ``engine.begin()``; then forget at once.

        What any cache invalidates on this connection is forgotten when the commit has happened,
        or may have happened.

        Raises:
            AbortedTransactionError: An error was caught in the block, so nothing can be committed.
            OutcomeUnknownError: The COMMIT was sent and its answer was lost.
        """
        acts: list[AfterCommit] = []
        try:
            with (
                self._connection(bind) as conn,
                committing(conn, f"a write to what cache {self.name!r} holds"),
                collecting(conn) as acts,
            ):
                yield conn
        except BaseException as error:
            if find_unknown_outcome(error) is not None:
                act_on(acts)  # to forget too much does no harm; what commits later, the relay tells
            raise
        failpoint("cache.write-committed")
        act_on(acts)

    def watch(self, sessions: type[Session] | sessionmaker[Any], *models: type) -> None:
        """Forget an entry whenever a session writes the row of ``models`` with that primary key.

        For caches whose key is the primary key. Inserts count, too: absence may be cached.

        Raises (while a session executes):
            UnknownRowsError: A statement writes rows of ``models`` without saying which; give it
                ``execution_options(cache_keys=[...])``.
        """
        watch_models(sessions, models, self.invalidate_in)

    def relay(self) -> RelayReport:
        """Send every invalidation that has committed and was not sent yet; one round.

        Run it all the time, somewhere. While nobody does, a reader does when it must.

        Raises:
            ServerUnavailableError: Redis did not answer; nothing is lost.
            SettingsError: The engine leads to a standby.
        """
        return self._backing.relay()

    def stats(self) -> CacheStats:
        """Return what this process has done with the cache."""
        return self._backing.counters.stats()

    def close(self) -> None:
        """Close idle connections to Redis; the cache can still be used."""
        self._backing.links.close()

    def _connection(self, bind: Engine | Connection | None) -> AbstractContextManager[Connection]:
        if isinstance(bind, Connection):
            return nullcontext(bind)
        return (bind or self._backing.engine).connect()

    def _read(self, codec: Codec[T], wanted: Wanted, load: Loader[T], *, anew: bool = False) -> T:
        # The hot path: nothing is made that a hit does not need.
        standing = None if anew else self._backing.gate.standing()
        if standing is not None:
            found = self._glance(wanted, standing)
            if (stored := self._backing.fresh(codec, found)) is not None:
                return stored.value
        return self._join(Reading((wanted,), codec, lambda conn, _: [load(conn)], anew))

    def _glance(self, wanted: Wanted, standing: Standing) -> Fetched:
        command = glance_at(wanted, prefix=standing.prefix)
        try:
            reply = self._backing.links.fetch(command, identity=standing.server)
        except CacheSilence:
            return Fetched(None)
        return glimpse_of(reply)

    def _read_many(
        self,
        codec: Codec[T],
        wanted: Callable[[K], Wanted],
        keys: Iterable[K],
        load: ManyLoader[K, T],
    ) -> dict[K, Any]:
        found: dict[K, Any] = {}
        distinct = [*dict.fromkeys(keys)]
        for start in range(0, len(distinct), ENTRIES_PER_CALL):
            some = distinct[start : start + ENTRIES_PER_CALL]
            reading: SyncReading[T] = Reading([*map(wanted, some)], codec, _of_missing(some, load))
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
        flow = reading.flow(self.policy)

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
                return self._load(reading, step)
            case Look():
                return time() * 1000, 1 - random.random()  # noqa: S311 -- spreads refreshes
            case Pause(seconds):
                sleep(seconds)
                return None
            case Note(what, amount):
                self._backing.counters.add(what, amount)
                return None
            case _:
                if isinstance(step, Fill):
                    failpoint("cache.value-loaded")
                command = command_for(step, prefix=standing.prefix, policy=self.policy)
                return answer_to(step, self._backing.links.call(command, identity=standing.server))

    def _load(self, reading: SyncReading[T], step: Load) -> list[Loaded[T]]:
        if step.leased:
            return self._load_now(reading, step)
        # What protects the database while Redis does not.
        if not self._bulkhead.acquire(timeout=self.policy.wait_seconds):
            raise CacheBusyError(waited_seconds=self.policy.wait_seconds)
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
            from_standby = is_standby(conn)
            values = reading.load(conn, step.places)
        return self._backing.packed(
            reading.codec, values, step, seconds=perf_counter() - began, is_standby=from_standby
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
