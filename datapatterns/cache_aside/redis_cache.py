"""Cache-aside for threads: read through Redis, write to PostgreSQL, forget after the commit."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import BoundedSemaphore
from time import perf_counter, sleep, time
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import uuid4

from redis import Redis
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

from datapatterns.cache_aside.backing import Backing
from datapatterns.cache_aside.cached_function import CachedFunction, refuse_a_second, value_type_of
from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.counting import CacheStats
from datapatterns.cache_aside.flights import Flights, Turns
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
from datapatterns.cache_aside.policy import DEFAULT_POLICY, CachePolicy
from datapatterns.cache_aside.redis_commands import (
    answer_to,
    command_for,
    value_key,
)
from datapatterns.cache_aside.relaying import RelayReport, Standing
from datapatterns.cache_aside.standby import is_standby
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
Loader = Callable[[Connection], T]


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

    def get_or_load(self, key: Key, load: Loader[T], *, value_type: object = Any) -> T:
        """Return the value under ``key``; if there is none, ``load`` it and keep it.

        Among concurrent callers, in this process and others, one loads and the others wait. A
        silent Redis costs time, never the answer. None is remembered, too, but not for long.

        Args:
            key: What the loader's result depends on.
            load: Reads the value on the connection it is given; that is in autocommit mode.
            value_type: What comes back: a dataclass, a ``msgspec.Struct``, a builtin or a
                composition of them. By default plain data.

        Raises:
            CacheKeyError: The key has a part that is equal to others without being identical.
            UncacheableValueError: The value does not come back as ``value_type``.
            CacheBusyError: Redis is away, and so many loads are under way that no place got
                free in time.
        """
        codec: Codec[T] = self._backing.codec(value_type)
        return self._read(entry_of(self.name, key), codec, load)

    def cached(self, load: Callable[Concatenate[Connection, P], T]) -> CachedFunction[P, T]:
        """Make a function that takes ``conn`` first into one that reads through this cache.

        The return annotation says what comes back. A cache holds the results of one function.

        Raises:
            SettingsError: The cache holds another function's results already.
        """
        refuse_a_second(self.name, self._cached, load)
        codec: Codec[T] = self._backing.codec(value_type_of(load))
        cached = CachedFunction(load, cache=self, read=lambda e, go: self._read(e, codec, go))
        self._cached = cached
        return cached

    def invalidate_in(self, writer: Connection | Session, *keys: Key) -> None:
        """Forget ``keys`` if and when the transaction of ``writer`` commits.

        Recorded in that transaction. A session tells of its commit, and so does a connection from
        `writes`: then it is done before the commit returns to the caller. For any other connection
        the relay does it, at most ``vouched_seconds`` later; so it does for a session that joined
        the transaction of such a connection. It never fails for want of Redis.

        Raises:
            IsolationLevelError: The writer is in autocommit mode.
            SettingsError: It writes to another database, or is an async one.
        """
        self._backing.invalidate_in(writer, keys)

    def invalidate(self, *keys: Key) -> None:
        """Forget ``keys`` now, for instance after a write that nobody recorded.

        Recorded in a transaction of its own first, so that it happens in the end even if Redis is
        away.
        """
        # Nothing else is written, so that an engine in autocommit mode is right here, too.
        with self._connection(None) as own:
            own.execution_options(isolation_level="READ COMMITTED")
            with self.writes(own) as conn:
                self._backing.invalidate_in(conn, keys)

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

    def _read(self, entry: str, codec: Codec[T], load: Loader[T]) -> T:
        standing = self._backing.gate.standing()
        if standing is not None:
            raw = self._glance(entry, standing)
            if (stored := self._backing.fresh(codec, raw)) is not None:
                return stored.value
        return self._join(entry, codec, load)

    def _glance(self, entry: str, standing: Standing) -> bytes | None:
        try:
            raw = self._backing.links.fetch(
                value_key(standing.prefix, entry), identity=standing.server
            )
        except CacheSilence:
            return None
        return raw if isinstance(raw, bytes) else None

    def _join(self, entry: str, codec: Codec[T], load: Loader[T]) -> T:
        has_flown = False

        def fly(turns: Turns) -> Outcome[T]:
            nonlocal has_flown
            has_flown = True
            return self._fly(entry, codec, load, turns)

        outcome = self._flights.join(entry, fly, wait_seconds=self.policy.wait_seconds, kind=codec)
        if outcome is None:  # whoever loads is slow; its fate is not ours
            return self._load(codec, load, leased=False).value
        self._backing.count(outcome, has_joined=not has_flown)
        return outcome.value

    def _fly(self, entry: str, codec: Codec[T], load: Loader[T], turns: Turns) -> Outcome[T]:
        standing = self._backing.gate.standing()
        if standing is None:
            self._backing.counters.add("bypassed")
            return Outcome(self._load(codec, load, leased=False).value, "loaded")
        flow = read_through(entry, codec=codec, policy=self.policy, token=uuid4().hex)

        def perform(step: AnyStep) -> object:
            if isinstance(step, Fetch | Fill):
                turns.begin()
            return self._perform(step, standing, codec, load)

        return _drive(flow, perform)

    def _perform(
        self, step: AnyStep, standing: Standing, codec: Codec[T], load: Loader[T]
    ) -> object:
        match step:
            case Load(leased):
                if leased:
                    failpoint("cache.lease-granted")
                return self._load(codec, load, leased=leased)
            case Look():
                return time() * 1000, 1 - random.random()  # noqa: S311 -- spreads refreshes
            case Pause(seconds):
                sleep(seconds)
                return None
            case Note(what):
                self._backing.counters.add(what)
                return None
            case _:
                if isinstance(step, Fill):
                    failpoint("cache.value-loaded")
                command = command_for(step, prefix=standing.prefix, policy=self.policy)
                return answer_to(step, self._backing.links.call(command, identity=standing.server))

    def _load(self, codec: Codec[T], load: Loader[T], *, leased: bool) -> Loaded[T]:
        if leased:
            return self._load_now(codec, load, leased=True)
        # What protects the database while Redis does not.
        if not self._bulkhead.acquire(timeout=self.policy.wait_seconds):
            raise CacheBusyError(waited_seconds=self.policy.wait_seconds)
        try:
            return self._load_now(codec, load, leased=False)
        finally:
            self._bulkhead.release()

    def _load_now(self, codec: Codec[T], load: Loader[T], *, leased: bool) -> Loaded[T]:
        began = perf_counter()
        # In autocommit mode each statement sees what had committed when it began: nothing that
        # is older than the lease, whatever the isolation level of the application.
        with self._backing.engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT")
            from_standby = is_standby(conn)
            loaded = load(conn)
        return self._backing.packed(
            codec,
            loaded,
            seconds=perf_counter() - began,
            leased=leased,
            is_standby=from_standby,
        )


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
