"""What an application declares, in one object that the CLI and the worker can load."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack
from weakref import WeakSet, WeakValueDictionary

from redis import Redis
from sqlalchemy import URL, Connection, Engine

from datapatterns.cache_aside import Cache, CachePolicy, CacheRelay
from datapatterns.cache_aside.policy import DEFAULT_POLICY
from datapatterns.connecting import (
    ServerReport,
    asked_database,
    asked_redis,
    connect_arguments,
    open_engine,
    open_redis,
)
from datapatterns.cqrs import (
    Answer,
    AnyProjection,
    Asked,
    CommandContext,
    CommandHandlers,
    Commands,
    Executed,
    InlineProjections,
    Projection,
    Projections,
    TableProjection,
    Token,
)
from datapatterns.cqrs.commands.commands import ExecuteOptions
from datapatterns.cqrs.running.declared import refuse_twins
from datapatterns.errors import IndexPlaceError, SettingsError
from datapatterns.event_sourcing import Codecs, EventStore, Position, SubjectKeys
from datapatterns.index_table import Indexes, IndexTable, ShardIndexes
from datapatterns.materialized_view import MaterializedView, Views
from datapatterns.overview import Declared, SeenLayer
from datapatterns.runtime import (
    CacheRelayLoop,
    CollectLoop,
    HowToWork,
    Loop,
    ShardIndexLoop,
    ShardMoveLoop,
    ShardRecoveryLoop,
    Worker,
    index_loops,
    view_loops,
    worker_for,
)
from datapatterns.settings import MAIN, READ_MODELS, Settings, settings_from
from datapatterns.sharding import EntityGroup, ShardCluster
from datapatterns.sharding.atomic import Recovery
from datapatterns.sql.discretion import discreet
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.sql.poolers import prepare_nothing_behind_poolers
from datapatterns.telemetry import SILENT, Observer
from datapatterns.transactions import watch_commits
from datapatterns.urls import shown_database, shown_redis

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from datapatterns.migrations import Migrations

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 5.0
"""How long to wait for a server to answer before it counts as away."""


C = TypeVar("C")
R = TypeVar("R")


class DataLayer(SeenLayer):
    """The servers an application uses and the patterns laid over them.

    What is not given is taken from the environment (see `datapatterns.settings`); a layer without
    a database can be declared, and says what is missing when the database is used. Nothing connects
    before it is used. Passwords show in no ``repr``, error or log.

    >>> DataLayer("postgresql://shop:secret@db.example/shop", redis_url="redis://:secret@cache")
    DataLayer(postgresql://shop@db.example/shop, redis=redis://cache, schema=datapatterns)

    Args:
        database_url: ``postgresql://user:password@host:5432/database``.
        read_models_url: The database of the read models, if that is another one; then the worker
            and all that reads them use it.
        redis_url: ``redis://``, ``rediss://`` or ``unix://``; Redis 7 or newer, or Valkey.
        shards: Further databases by name.
        schema: Where the library's tables live in each database.
        redis_prefix: What all keys in Redis begin with; unless given, the name of the schema.
            Applications that share one Redis need different ones.
        codecs: What events are stored as in place of plain JSON, see `EventStore`.
        keys: Of the persons whom personal fields of events are about.
        projections: What workers and the command line run, see `datapatterns.cqrs`.
        commands: The handlers of commands; `handles` adds to them.
        views: The materialized views that workers and the command line refresh.
        indexes: The index tables that the command line builds and verifies.
        observer: Receives counts and durations.

    Raises:
        IndexPlaceError: An index table lies over shards.
        IndexUndeclaredError: Two index tables have one name, or one lives in another schema.
        ProjectionDefinitionError: A version of a projection is declared twice.
        SettingsError: A URL or a name cannot be used.
        ViewCycleError: Views are built upon each other in a circle.
        ViewUndeclaredError: Two views have one name, or one lives in another schema.
    """

    def __init__(  # noqa: PLR0913 -- an application's settings, all by name
        self,
        database_url: str | URL | None = None,
        *,
        read_models_url: str | URL | None = None,
        redis_url: str | None = None,
        shards: Mapping[str, str | URL] | None = None,
        schema: str | None = None,
        redis_prefix: str | None = None,
        codecs: Codecs | None = None,
        keys: SubjectKeys | None = None,
        projections: Sequence[type[AnyProjection]] = (),
        commands: CommandHandlers | None = None,
        views: Sequence[MaterializedView] = (),
        indexes: Sequence[IndexTable] = (),
        observer: Observer = SILENT,
    ) -> None:
        self.settings: Settings = settings_from(
            os.environ,
            database_url=database_url,
            read_models_url=read_models_url,
            redis_url=redis_url,
            shards=shards,
            schema=schema,
        )
        self.observer = observer
        self._codecs, self._keys = codecs or Codecs(), keys
        self._declared = tuple(projections)
        refuse_twins(self._declared)
        self._handlers = commands or CommandHandlers()
        self._views = Views(tuple(views), self.settings.schema)
        self._indexes = Indexes(_in_one_database(indexes), self.settings.schema)
        self._redis_prefix = redis_prefix or self.settings.schema
        found = self.settings
        self._engine = open_engine(found.database_url) if found.database_url else None
        self._read_engine = open_engine(found.read_models_url) if found.read_models_url else None
        self._shard_engines = {name: open_engine(url) for name, url in found.shards.items()}
        self._redis = (
            open_redis(found.redis_url, timeout_seconds=CONNECT_TIMEOUT_SECONDS)
            if found.redis_url
            else None
        )
        self._async_engines: dict[str, AsyncEngine] = {}
        self._caches: WeakValueDictionary[str, Cache] = WeakValueDictionary()
        self._clusters: WeakSet[ShardCluster] = WeakSet()
        self._lock = Lock()

    @classmethod
    @contextmanager
    def embedded(
        cls,
        *,
        shards: int = 0,
        schema: str = DEFAULT_SCHEMA,
        projections: Sequence[type[AnyProjection]] = (),
        views: Sequence[MaterializedView] = (),
        indexes: Sequence[IndexTable] = (),
        observer: Observer = SILENT,
    ) -> Iterator[Self]:
        """Start servers of its own, migrate them, and stop them at the end; needs ``embedded``.

        Args:
            shards: How many further databases to start, called ``s0``, ``s1`` and so on.
            schema: Where the library's tables live.
            projections: What workers and the command line run.
            views: The materialized views that they refresh.
            indexes: The index tables that the command line builds.
            observer: Receives counts and durations.
        """
        try:
            from datapatterns.embedded import EmbeddedServers  # noqa: PLC0415 -- needs an extra
        except ModuleNotFoundError as error:
            advice = "install the extra: pip install 'datapatterns[embedded]'"
            raise SettingsError("embedded servers", advice) from error
        with EmbeddedServers() as servers:
            layer = cls(
                servers.postgres(MAIN).url,
                redis_url=servers.valkey().url,
                shards={f"s{n}": servers.postgres(f"s{n}").url for n in range(shards)},
                schema=schema,
                projections=projections,
                views=views,
                indexes=indexes,
                observer=observer,
            )
            with closing(layer):
                layer.migrations.upgrade()
                yield layer

    def __repr__(self) -> str:
        database, redis = self.settings.database_url, self.settings.redis_url
        parts = [shown_database(database) if database else "no database"]
        if self.settings.read_models_url:
            parts.append(f"read models={shown_database(self.settings.read_models_url)}")
        parts += [f"{name}={shown_database(url)}" for name, url in self.settings.shards.items()]
        parts += [f"redis={shown_redis(redis)}"] if redis else []
        return f"DataLayer({', '.join(parts)}, schema={self.schema})"

    @property
    def schema(self) -> str:
        """Where the library's tables live in each database."""
        return self.settings.schema

    @property
    def engine(self) -> Engine:
        """The pool of connections to the database.

        Raises:
            SettingsError: No database was named.
        """
        if self._engine is None:
            raise SettingsError("database URL", "set DATAPATTERNS_DATABASE_URL, or pass it")
        return self._engine

    @property
    def read_engine(self) -> Engine:
        """The pool of connections to the database of the read models; the same unless given.

        Raises:
            SettingsError: No database was named.
        """
        return self.engine if self._read_engine is None else self._read_engine

    @property
    def async_engine(self) -> "AsyncEngine":
        """The same database for asyncio; needs the ``async`` extra."""
        return self._asynchronous(MAIN, self.engine, self.settings.database_url)

    @property
    def async_read_engine(self) -> "AsyncEngine":
        """The database of the read models for asyncio; needs the ``async`` extra."""
        if self._read_engine is None:
            return self.async_engine
        return self._asynchronous(READ_MODELS, self._read_engine, self.settings.read_models_url)

    def _asynchronous(self, name: str, engine: Engine, declared: URL | None) -> "AsyncEngine":
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 -- needs an extra

        with self._lock:
            if name not in self._async_engines:
                made = create_async_engine(
                    engine.url,
                    connect_args=connect_arguments(declared or engine.url, CONNECT_TIMEOUT_SECONDS),
                    pool_pre_ping=True,
                    hide_parameters=True,
                )
                watch_commits(prepare_nothing_behind_poolers(discreet(made.sync_engine)))
                self._async_engines[name] = made
            return self._async_engines[name]

    @property
    def shard_engines(self) -> Mapping[str, Engine]:
        """The pools of connections to the shards, by name."""
        return MappingProxyType(self._shard_engines)

    @property
    def redis(self) -> Redis:
        """The client of Redis or Valkey; it answers in bytes.

        Raises:
            SettingsError: No Redis was named.
        """
        if self._redis is None:
            raise SettingsError("Redis URL", "set DATAPATTERNS_REDIS_URL, or pass redis_url")
        return self._redis

    @property
    def events(self) -> EventStore:
        """The event store of the database; it keeps the projections declared ``inline=True``."""
        inline = [p for p in self._declared if issubclass(p, Projection) and p.inline]
        return EventStore(
            schema=self.schema,
            codecs=self._codecs,
            keys=self._keys,
            inline=InlineProjections(tuple(inline)) if inline else None,
        )

    @property
    def commands(self) -> Commands:
        """What executes commands on the event store, by the handlers that are declared."""
        return Commands(self.events, self._handlers)

    def handles(
        self,
        command: type[C],
        *,
        name: str | None = None,
        version: int = 1,
        validate: Callable[[C], Any] | None = None,
    ) -> Callable[[Callable[[C, CommandContext], R]], Callable[[C, CommandContext], R]]:
        """Declare the function that handles a command, as `CommandHandlers.handles` does."""
        return self._handlers.handles(command, name=name, version=version, validate=validate)

    def execute(self, command: object, **options: Unpack[ExecuteOptions]) -> Executed:
        """Execute a command on the database, as `Commands.execute` does.

        Raises:
            SettingsError: No database was named.
        """
        return self.commands.execute(self.engine, command, **options)

    async def execute_async(self, command: object, **options: Unpack[ExecuteOptions]) -> Executed:
        """Do as `execute`, on the async engine; needs the ``async`` extra."""
        return await self.commands.execute_async(self.async_engine, command, **options)

    @property
    def projections(self) -> Projections:
        """What runs projections of the event store, into tables and into Redis."""
        return Projections(
            store=self.events,
            events_from=None if self._read_engine is None else self.engine,
            redis=self._redis,
            redis_prefix=self._redis_prefix,
            declared=self._declared,
        )

    @property
    def views(self) -> Views:
        """The materialized views of the database."""
        return self._views

    @property
    def indexes(self) -> Indexes:
        """The index tables of the database, or of each shard."""
        return self._indexes

    def wait(
        self,
        projection: type[AnyProjection],
        token: Token | Position,
        *,
        timeout_seconds: float,
    ) -> Position:
        """Do as `Projections.wait` does, in the database."""
        return self.projections.wait(
            self.read_engine, projection, token, timeout_seconds=timeout_seconds
        )

    async def wait_async(
        self,
        projection: type[AnyProjection],
        token: Token | Position,
        *,
        timeout_seconds: float,
    ) -> Position:
        """Do as `wait` does, in a task."""
        return await self.projections.wait_async(
            self.async_read_engine, projection, token, timeout_seconds=timeout_seconds
        )

    def query(
        self,
        projection: type[TableProjection],
        ask: Callable[[Connection], T],
        **asked: Unpack[Asked],
    ) -> Answer[T]:
        """Do as `Projections.query` does, in the database."""
        return self.projections.query(self.read_engine, projection, ask, **asked)

    async def query_async(
        self,
        projection: type[TableProjection],
        ask: Callable[[Connection], T],
        **asked: Unpack[Asked],
    ) -> Answer[T]:
        """Do as `query` does, in a task."""
        return await self.projections.query_async(self.async_read_engine, projection, ask, **asked)

    def worker(self, only: Sequence[str] = (), **how: Unpack[HowToWork]) -> Worker:
        """Return a worker for all that is declared, or those named; see `HowToWork`.

        Raises:
            ProjectionDefinitionError: A name of ``only`` is nothing's that is declared.
            ValueError: There are no threads, or a time cannot be kept.
        """
        projections = self.projections
        named = [name for name in only if self.views.declares(name)]
        indexes = [name for name in only if self.indexes.declares(name)]
        others = [name for name in only if name not in {*named, *indexes}]
        loops: list[Loop] = []
        if named or not only:
            loops += view_loops(self.engine, self.views, named, self.observer, **how)
        collected = {self._engine} if loops else set()
        if how.get("relay_caches", bool(self._caches) and not only):
            loops += [CacheRelayLoop(self.cache_relay()), *self._collecting(collected)]
        if indexes or not only:
            loops += self._index_loops(indexes, collected)
        if how.get("recover_shards", bool(self._shard_engines) and not only):
            recovery = Recovery(self._shard_engines, schema=self.schema)
            loops.append(ShardRecoveryLoop(recovery.run))
        if how.get("finish_moves", not only):
            loops += [ShardMoveLoop(each.finish_moves) for each in self._clusters]
        if how.get("sweep_indexes", not only):
            loops += [ShardIndexLoop(c) for c in self._clusters if ShardIndexes.of(c).declared]
        how["loops"] = [*how.get("loops", ()), *loops]
        if only and not others:
            projections = replace(projections, declared=())
        return worker_for(self.read_engine, projections, others, self.observer, **how)

    def _index_loops(self, only: Sequence[str], collected: set[Engine | None]) -> list[Loop]:
        main = {MAIN: self._engine} if self._engine else {}
        engines = main | self._shard_engines
        loops = index_loops(engines, self.indexes, only, self.observer)
        return [*loops, *self._collecting(collected, *engines.values())] if loops else []

    def _collecting(self, collected: set[Engine | None], *engines: Engine) -> list[Loop]:
        """Return what deletes logged changes where nothing does yet, in the database at least."""
        wanted = [each for each in engines or [self.engine] if each not in collected]
        collected.update(wanted)
        return [CollectLoop(each, self.schema) for each in wanted]

    def cache(self, name: str, *, policy: CachePolicy = DEFAULT_POLICY) -> Cache:
        """Return the cache called ``name``, which the caller keeps, shares and closes.

        Args:
            name: What it holds, such as ``product``.
            policy: The times it lives by.

        Raises:
            SettingsError: No Redis was named.
            CacheKeyError: ``name`` cannot be used.
        """
        cache = self._caches[name] = Cache(
            self.redis,
            self.engine,
            name=name,
            policy=policy,
            schema=self.schema,
            target=self._redis_prefix,
            observer=self.observer,
        )
        return cache

    @property
    def caches(self) -> Mapping[str, Cache]:
        """The caches that `cache` has returned and somebody keeps, by name; the last of each."""
        return MappingProxyType(dict(sorted(self._caches.items())))

    def cache_relay(self, *, policy: CachePolicy = DEFAULT_POLICY) -> CacheRelay:
        """Return what tells Redis of invalidations, for all caches of this layer.

        Args:
            policy: How long each round vouches for the server, and how long Redis may take.

        Raises:
            SettingsError: No Redis, or no database, was named.
        """
        return CacheRelay(
            self.redis,
            self.engine,
            policy=policy,
            schema=self.schema,
            target=self._redis_prefix,
            observer=self.observer,
        )

    def cluster(self, *groups: EntityGroup, indexes: ShardIndexes | None = None) -> ShardCluster:
        """Return the shards of this layer as a cluster, which the caller keeps and closes.

        The shard map is in the main database. Workers made while it is kept finish its moves whose
        process died at their cut.

        Args:
            groups: What is sharded.
            indexes: The index tables over these shards; workers sweep them.

        Raises:
            SettingsError: No shards, or no database for their map, are named.
        """
        cluster = ShardCluster(
            control=self.engine.url,
            shards=self.settings.shards,
            groups=groups,
            schema=self.schema,
            indexes=indexes,
        )
        self._clusters.add(cluster)
        return cluster

    @property
    def migrations(self) -> "Migrations":
        """The migrations of the library's tables in all databases of this layer."""
        # Alembic takes a third of the time that importing all the rest does.
        from datapatterns.migrations import Migrations  # noqa: PLC0415

        return Migrations(self._databases(), self.schema, CONNECT_TIMEOUT_SECONDS)

    @contextmanager
    def _overview(self, clusters: Sequence[ShardCluster]) -> Iterator[Declared]:
        main = {MAIN: self._engine} if self._engine else {}
        models = {READ_MODELS: self._read_engine} if self._read_engine is not None else {}
        relay = self.cache_relay() if self._engine and self._redis is not None else None
        with closing(relay) if relay is not None else nullcontext():
            yield Declared(
                engines=main | models | self._shard_engines,
                schema=self.schema,
                projections=self.projections,
                views=self.views,
                indexes=self.indexes,
                relay=relay,
                clusters=tuple(dict.fromkeys([*self._clusters, *clusters])),
            )

    def check(self) -> list[ServerReport]:
        """Ask every declared server whether it is there and new enough, and return the answers.

        Raises:
            ServerTooOldError: PostgreSQL before 14, or Redis before 7.
            ServerUnavailableError: One did not answer in time.
        """
        engines = ({MAIN: self._engine} if self._engine else {}) | self._shard_engines
        if self._read_engine is not None:
            engines |= {READ_MODELS: self._read_engine}
        reports = [asked_database(name, engine) for name, engine in engines.items()]
        if self._redis is not None:
            reports.append(asked_redis(self._redis, shown_redis(str(self.settings.redis_url))))
        return reports

    def close(self) -> None:
        """Close all idle connections; using the layer again opens new ones.

        Connections of the async engine belong to its event loop: close them there with
        ``await layer.aclose()``.
        """
        engines = (self._engine, self._read_engine, *self._shard_engines.values())
        for engine in filter(None, engines):
            engine.dispose()
        if self._redis is not None:
            self._redis.close()

    async def aclose(self) -> None:
        """Close all idle connections, those of the async engine, too."""
        for engine in self._async_engines.values():
            await engine.dispose()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def _databases(self) -> dict[str, URL]:
        main, read_models = self.settings.database_url, self.settings.read_models_url
        named = {MAIN: main, READ_MODELS: read_models}
        return {name: url for name, url in named.items() if url} | dict(self.settings.shards)


def _in_one_database(indexes: Sequence[IndexTable]) -> tuple[IndexTable, ...]:
    for index in indexes:
        if index.definition.mode == "reserve":
            advice = "give it to a cluster of shards: layer.cluster(indexes=ShardIndexes([...]))"
            raise IndexPlaceError(index.name, mode="reserve", advice=advice)
    return tuple(indexes)
