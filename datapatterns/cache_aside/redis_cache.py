"""Cache-aside for threads: read through Redis, write to PostgreSQL, forget after the commit."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, TypeVarTuple, Unpack, overload

from redis import Redis
from redis.cluster import RedisCluster
from sqlalchemy import CompoundSelect, Connection, Engine, Select
from sqlalchemy.orm import Session, sessionmaker

from datapatterns.cache_aside.auditing import Auditor, loading_on
from datapatterns.cache_aside.backing import Backing
from datapatterns.cache_aside.cached_function import (
    CachedFunction,
    Calls,
    refuse_a_second,
    value_type_of,
)
from datapatterns.cache_aside.capturing import Tabled
from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.counting import CacheStats
from datapatterns.cache_aside.driver import Driver, Loader, ManyLoader
from datapatterns.cache_aside.flights import Flights
from datapatterns.cache_aside.keys import Key
from datapatterns.cache_aside.policy import DEFAULT_POLICY, CachePolicy, ValueOptions, layered
from datapatterns.cache_aside.query_plans import AnyQuery
from datapatterns.cache_aside.querying import read_query
from datapatterns.cache_aside.relaying import RelayReport
from datapatterns.cache_aside.tags import no_tags, wanted_of
from datapatterns.cache_aside.watching import watch_models
from datapatterns.cache_aside.watching_tags import watch_tags
from datapatterns.cache_aside.writing import committed_writes, connection_of
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.telemetry import SILENT, Observer

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
K = TypeVar("K", bound=Key)


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
        load_from: A replica to load from, as far as it has replayed what was forgotten; what it
            has not, or while it is away, is loaded from the primary.
        strict: Whether writers commit only behind a fence in Redis: from before the COMMIT nobody
            is served or stores what they make obsolete. Without one they get `UnfencedWriteError`.
    """

    def __init__(  # noqa: PLR0913 -- a composition root of its own
        self,
        redis: str | Redis | RedisCluster,
        engine: Engine,
        *,
        name: str,
        policy: CachePolicy = DEFAULT_POLICY,
        schema: str = DEFAULT_SCHEMA,
        target: str = "datapatterns",
        observer: Observer = SILENT,
        load_from: Engine | None = None,
        strict: bool = False,
    ) -> None:
        flights = Flights()
        self._backing = Backing(
            redis, engine, name=name, policy=policy, schema=schema, target=target,
            observer=observer, strict=strict, detach=flights.detach,
        )  # fmt: skip
        self._driver = Driver(self._backing, flights, load_from)
        self._queries = self._backing.queries()
        self._cached: CachedFunction[..., Any] | None = None

    @property
    def name(self) -> str:
        """What the cache holds."""
        return self._backing.name

    @property
    def policy(self) -> CachePolicy:
        """The times to live by."""
        return self._backing.policy

    @property
    def function(self) -> CachedFunction[..., Any] | None:
        """The function whose results it holds; None if `cached` was not called."""
        return self._cached

    def get_or_load(
        self,
        key: Key,
        load: Loader[T],
        *,
        value_type: object = Any,
        tags: Iterable[str] = (),
        within: Connection | Session | None = None,
        allow_nonrepeatable: bool = False,
        **options: Unpack[ValueOptions],
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
            within: A transaction that may have written what is wanted, and then sees its own
                writes: ``load`` is called with its connection, and nothing is kept. In a
                transaction above READ COMMITTED, which sees one moment only, ``load`` is called
                with its connection, too; others are given what it finds if that cannot be older
                than an invalidation.
            allow_nonrepeatable: Whether such a transaction may be given what is cached, which may
                be newer than its moment, and takes no part in its serializability.
            options: Times of this value in place of the cache's; those of whoever stores it count.

        Raises:
            CacheKeyError: The key has a part that is equal to others without being identical.
            SettingsError: An option has no sense.
            UncacheableValueError: The value does not come back as ``value_type``.
            CacheBusyError: Redis is away, and no place for one more load got free in time.
        """
        codec: Codec[T] = self._backing.codec(value_type)
        policy = layered(self.policy, options) if options else self._driver.policy  # hot
        wanted = wanted_of(self.name, key, tags)
        if within is not None:
            return self._driver.read_within(
                codec, policy, wanted, load, within, allow_nonrepeatable=allow_nonrepeatable
            )
        return self._driver.read(codec, policy, wanted, load)

    def get_many(
        self,
        keys: Iterable[K],
        load: ManyLoader[K, T],
        *,
        value_type: object = Any,
        tags: Callable[[K], Iterable[str]] = no_tags,
        **options: Unpack[ValueOptions],
    ) -> dict[K, T | None]:
        """Return the values under ``keys``; those that are missing are loaded together and kept.

        One round trip finds what is there, and ``load`` is called once, for 500 keys at most
        at a time.

        Args:
            keys: As for `get_or_load`; duplicates count once.
            load: Returns the values by key; for a key that it leaves out, None is remembered.
            value_type: As for `get_or_load`, of each value.
            tags: What the value under a key depends on besides.
            options: As for `get_or_load`, of each value that this call stores.

        Raises:
            SettingsError: The loader returned a key that was not asked for.
            Exception: The errors of `get_or_load`.
        """
        codec: Codec[T] = self._backing.codec(value_type)
        policy = layered(self.policy, options)
        return self._driver.read_many(
            codec, policy, lambda key: wanted_of(self.name, key, tags(key)), keys, load
        )

    @overload
    def query(
        self,
        statement: Select[*Ts] | CompoundSelect[*Ts],
        *,
        tags: Iterable[str] | None = None,
        within: Connection | Session | None = None,
    ) -> list[tuple[*Ts]]: ...

    @overload
    def query(
        self,
        statement: AnyQuery,
        *,
        value_type: type[T],
        tags: Iterable[str] | None = None,
        within: Connection | Session | None = None,
    ) -> list[T]: ...

    def query(
        self,
        statement: AnyQuery,
        *,
        value_type: Any = None,
        tags: Iterable[str] | None = None,
        within: Connection | Session | None = None,
    ) -> Any:  # as the overloads say
        """Return the rows of a query, from the cache if it can.

        What it depends on is derived: of each table in it, the rows that its conditions demand by
        primary key or by `TAGGED` columns, else all. Writes have to be told: by `capture`, or by
        `watch_tags` of this cache.

        Args:
            statement: A ``select()``, a UNION and the like. The first of its kind asks the server
                what it reads, by a temporary view that is rolled back.
            value_type: What is made of each row, by the names of columns; else tuples.
            tags: What the result depends on, if you know better; see `tag`.
            within: As for `get_or_load`.

        Raises:
            MissingRightsError: The role may not ask the server what the query reads.
            UncacheableQueryError: Nobody can tell what the result depends on.
            UncacheableValueError: The rows do not come back as what they are.
        """
        return read_query(self._queries, self._driver, statement, value_type, tags, within)

    @overload
    def cached(self, load: Callable[Concatenate[Connection, P], T]) -> CachedFunction[P, T]: ...

    @overload
    def cached(
        self,
        *,
        tags: Callable[P, Iterable[str]],
        allow_nonrepeatable: bool = False,
        **options: Unpack[ValueOptions],
    ) -> Callable[[Callable[Concatenate[Connection, P], T]], CachedFunction[P, T]]: ...

    @overload
    def cached(
        self, *, allow_nonrepeatable: bool = False, **options: Unpack[ValueOptions]
    ) -> Callable[[Callable[Concatenate[Connection, P], T]], CachedFunction[P, T]]: ...

    def cached(
        self,
        load: Any = None,
        *,
        tags: Any = None,
        allow_nonrepeatable: bool = False,
        **options: Unpack[ValueOptions],
    ) -> Any:
        """Make a function that takes ``conn`` first into one that reads through this cache.

        The return annotation says what comes back. A cache holds the results of one function.

        Args:
            load: The function.
            tags: What the result depends on besides the arguments, which this is called with.
            allow_nonrepeatable: As for `get_or_load`, of all calls of `CachedFunction.within`.
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
        self._cached = CachedFunction(
            load,
            calls=calls,
            cache=self,
            read=partial(self._driver.read, codec, policy),
            read_within=partial(
                self._driver.read_within, codec, policy, allow_nonrepeatable=allow_nonrepeatable
            ),
            read_many=partial(self._driver.read_many, codec, policy, calls.wanted_of),
            local=local and local.take_calls(codec),
            audit=lambda load, limit, on_checked: Auditor(
                self._backing, codec, calls.wanted_of, loading_on(self._backing.engine, load)
            ).audit(limit, on_checked),
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
        of such a connection. It never fails for want of Redis; a strict cache's COMMIT does.

        Raises:
            IsolationLevelError: The writer is in autocommit mode.
            SettingsError: It writes to another database, or is an async one.
        """
        self._backing.invalidate_in(writer, keys, tags)

    def invalidate(self, *keys: Key, tags: Iterable[str] = ()) -> None:
        """Forget ``keys`` now, for instance after a write that nobody recorded.

        And whatever depends on ``tags``, in all caches of this target.

        Recorded in a transaction of its own first: in the end it happens though Redis is away.
        """
        # Nothing else is written, so that an engine in autocommit mode is right here, too.
        with self._backing.engine.connect() as own:
            own.execution_options(isolation_level="READ COMMITTED")
            with self.writes(own) as conn:
                self._backing.invalidate_in(conn, keys, tags, is_late=True)

    @contextmanager
    def writes(self, bind: Engine | Connection | None = None) -> Iterator[Connection]:
        """Open a transaction and commit it, like ``engine.begin()``; then forget at once.

        What any cache invalidates on this connection is forgotten when the commit has happened,
        or may have happened.

        Raises:
            AbortedTransactionError: An error was caught in the block, so nothing can be committed.
            OutcomeUnknownError: The COMMIT was sent and its answer was lost.
            UnfencedWriteError: The cache is strict, and Redis did not put up a fence.
        """
        with connection_of(bind or self._backing.engine) as conn:
            yield from committed_writes(conn, f"a write to what cache {self.name!r} holds")

    def watch(self, sessions: type[Session] | sessionmaker[Any], *models: type) -> None:
        """Forget an entry whenever a session writes the row of ``models`` with that primary key.

        For caches whose key is the primary key. Inserts count, too: absence may be cached.

        Raises:
            CacheKeyError: Equal values of the primary key may be written in several ways.

        Raises (while a session executes):
            UnknownRowsError: A statement writes rows of ``models`` without saying which; give it
                ``execution_options(cache_keys=[...])``.
        """
        watch_models(sessions, models, self.invalidate_in)

    def watch_tags(self, sessions: type[Session] | sessionmaker[Any], *models: type) -> None:
        """Forget what depends on a table, row or value whenever a session writes it.

        By the tags that `tag` gives: of the table, of each row, and of each `TAGGED` column's
        value before and after. A statement that does not say which rows it writes makes everything
        obsolete that depends on rows of its table. What SQL text writes is not seen.
        """
        forget = self._backing.invalidate_in
        self._queries.watch(models)
        watch_tags(sessions, models, lambda session, tags: forget(session, (), tags))

    def capture(self, conn: Connection, *models: Tabled, by_key: bool = True) -> None:
        """Let the relay forget what depends on ``models``, whoever writes their rows.

        By triggers, which see what no session does: SQL text, bulk statements, cascades, other
        programs. As `watch` and `watch_tags` do, but by the relay: at most ``vouched_seconds``
        after the commit. Do it once, in a migration, as the owner of the tables; a rename or a
        new column needs it again. What was cached before is forgotten.

        Args:
            conn: A connection in a transaction. The caller commits.
            models: Mapped classes or tables.
            by_key: Whether the entries of this cache are named by the primary key.

        Raises:
            CacheKeyError: Equal values of a primary key may differ.
            CaptureRefusedError: Some changes of a table would be missed.
            MissingRightsError: The role does not own a table.
        """
        self._backing.capture(conn, models, by_key=by_key)

    def release(self, conn: Connection, *models: Tabled) -> None:
        """Let the relay follow ``models`` no more, for none of this target's caches."""
        self._backing.release(conn, models)

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
        return self._backing.stats()

    def close(self) -> None:
        """Close idle connections to Redis, and the tracking one; the cache can still be used."""
        self._backing.close()
