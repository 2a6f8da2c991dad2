"""The projections of one schema: run them, wait for them, look at them."""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from sqlalchemy import Connection, Engine

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.cqrs.building.versioning import Versioning
from datapatterns.cqrs.definition import AnyProjection, Projection, RedisProjection
from datapatterns.cqrs.in_redis.redis_connection import AnyRedis, redis_answers
from datapatterns.cqrs.in_redis.redis_keys import RedisKeys
from datapatterns.cqrs.in_redis.redis_projecting import RedisRunner
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.in_redis.redis_view import RedisView
from datapatterns.cqrs.in_redis.redis_view_async import AsyncRedisView
from datapatterns.cqrs.reading.reading import Reading
from datapatterns.cqrs.running.catching_up import CatchUp, Target
from datapatterns.cqrs.running.declared import find_declared, refuse_twins
from datapatterns.cqrs.running.events_elsewhere import EventsElsewhere
from datapatterns.cqrs.running.leasing import (
    is_shown_inline,
    read_build,
    read_own_position,
    read_position,
)
from datapatterns.cqrs.running.modes import read_mode
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.runners import LeaseTerms, leased, run_pages
from datapatterns.cqrs.running.shared_out import SharedOut
from datapatterns.cqrs.running.switching import Switch
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.set_definition import SetProjection
from datapatterns.cqrs.tables.live import LiveFolds
from datapatterns.cqrs.tables.set_projecting import SetRunner
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.cqrs.unapplied import UnappliedEvents
from datapatterns.cqrs.verification import Verifying
from datapatterns.errors import ProjectionDefinitionError, ProjectionModeError, SettingsError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.sql.texts import is_text
from datapatterns.transactions import fresh_reads, looking, reading

LEASE_SECONDS_MAX: Final = 86_400
"""For longer nobody should wait for a runner that died."""


@dataclass(frozen=True, slots=True)
class Projections(Reading, LiveFolds, UnappliedEvents, SharedOut, Verifying, Versioning):
    """Moves read models on behind the log of ``store``, each event exactly once.

    Attributes:
        store: Where the events are; checkpoints and leases are kept in the same schema.
        lease_seconds: How long after its latest page a runner keeps a projection to itself. A
            page that takes longer is undone if another runner has claimed it meanwhile.
        events_from: Where the events are, if not on the server of the read models, checkpoints and
            leases, which is what each ``engine`` below means. Then nothing is kept inline, and
            statements cannot move read models on.
        redis: Where the read models of `RedisProjection` are; its memory must not evict them.
        redis_prefix: What their keys begin with; the schema's name unless given. Databases that
            share one Redis need different ones.
        clock: What waiting goes by.
        declared: What the application declares, for workers and the command line.

    Raises:
        ProjectionDefinitionError: A version of a projection is declared twice.
        ValueError: ``lease_seconds`` is not positive, or more than a day.
    """

    store: EventStore = field(default_factory=EventStore)
    lease_seconds: float = 30.0
    events_from: Engine | None = field(default=None, repr=False)
    redis: AnyRedis | None = field(default=None, repr=False)
    redis_prefix: str | None = None
    clock: Clock = field(default=SYSTEM_CLOCK, repr=False)
    declared: Sequence[type[AnyProjection]] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.lease_seconds <= LEASE_SECONDS_MAX:
            raise ValueError(f"a lease of {self.lease_seconds} seconds cannot be kept")
        if self.redis_prefix is not None and not is_text(self.redis_prefix):
            raise ValueError(f"{self.redis_prefix!r} is no text that keys could begin with")
        refuse_twins(self.declared)

    def find(self, name: str, *, version: int | None = None) -> type[AnyProjection]:
        """Return what is declared under ``name``, the newest version unless one is given.

        Raises:
            ProjectionDefinitionError: Nothing is.
        """
        return find_declared(self.declared, name, version)

    def run(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        *,
        pages_max: int = 1,
        page_events: int | None = None,
    ) -> ProjectionProgress:
        """Apply at most ``pages_max`` pages of events, each in a transaction of its own.

        Raises:
            CommitUnansweredError: The connection broke during a COMMIT; run it again.
            LeaseHeldError: Another runner is at it.
            LeaseLostError: Another runner took over meanwhile; the page was undone.
            ProjectionStoppedError: An event cannot be applied; all before it were.
            ProjectionVersionError: The read model was built by another version; rebuild it.
            ValueError: ``pages_max`` or ``page_events`` is not positive.
        """
        if pages_max < 1:
            raise ValueError(f"{pages_max} pages move nothing on; ask for at least 1")
        runner = self._runner(projection, page_events)
        try:
            with (
                fresh_reads(engine) as conn,
                leased(conn, self._source, projection, self._terms()) as latest,
            ):
                return run_pages(conn, runner, latest, pages_max=pages_max)
        except ProjectionModeError:
            return self._kept_by_appends(engine)

    def catch_up(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        *,
        until: Position | None = None,
        timeout_seconds: float = 60.0,
        page_events: int | None = None,
        on_page: Callable[[ProjectionProgress], None] = lambda _: None,
    ) -> ProjectionProgress:
        """Return when the read model has reached ``until``, by this runner's work or another's.

        Args:
            engine: Where the events and the checkpoints are.
            projection: What to run.
            until: Where to stop looking; unless given, the end of the log as it is now.
            timeout_seconds: After this much no further page is begun.
            page_events: How many events one transaction applies at most; unless given, as many as
                the projection's class says.
            on_page: Called after each page, for a progress bar.

        Raises:
            CommitUnansweredError: The connection broke during a COMMIT; do it again.
            ProjectionStoppedError: An event cannot be applied; all before it were.
            ProjectionVersionError: The read model was built by another version; rebuild it.
            ReadModelBehindError: The time has passed; what was applied stays.
        """
        deadline = self.clock.monotonic() + timeout_seconds
        with fresh_reads(engine) as conn:
            if until is None:
                with looking(conn):
                    until = self._source.high_water_mark(conn)
            work = CatchUp(
                self._source,
                projection,
                self._runner(projection, page_events),
                self._terms(),
                self.clock,
                lambda conn: self._reached(conn, projection),
            )
            return work.run(conn, Target(until, deadline), on_page)

    def make_inline(
        self,
        engine: Engine,
        projection: type[Projection],
        *,
        timeout_seconds: float = 60.0,
        page_events: int = 5_000,
    ) -> None:
        """Let each append keep the read model from now on, in its own transaction.

        The read model is brought to the end of the log, and switched in a moment in which nobody
        appends: others wait in line for it, 0.3 seconds at most each time it is tried. From then
        on a writer that does not keep it is refused by the database. Give the stores of all
        writers `InlineProjections` first, which changes nothing by itself.

        Args:
            engine: Where the events and the read model are.
            projection: The live version.
            timeout_seconds: How long to catch up, and then to try, at most.
            page_events: How many events one transaction applies at most.

        Raises:
            MissingRightsError: The role may not change how projections are kept.
            ProjectionModeError: Another version is the live one.
            ProjectionStoppedError: An event cannot be applied.
            ReadModelBehindError: It did not catch up in time.
            WritersInTheWayError: Somebody appended all the time.
        """
        self.catch_up(engine, projection, timeout_seconds=timeout_seconds, page_events=page_events)
        self._switch(projection, page_events).to_inline(engine, timeout_seconds=timeout_seconds)

    def make_async(
        self, engine: Engine, projection: type[Projection], *, timeout_seconds: float = 60.0
    ) -> None:
        """Let runners move the read model on from now on, behind what appends have kept.

        Raises: as `make_inline`.
        """
        self._switch(projection, page_events=1).to_async(engine, timeout_seconds=timeout_seconds)

    def position(self, conn: Connection, projection: type[AnyProjection]) -> Position | None:
        """Return up to where the read model shows the log; None if it is not there or not whole.

        Rows of a table that another version has built are not there for this one, unless it was
        live before: then the other took its place.

        Raises:
            ServerUnavailableError: It is in Redis, which does not answer.
        """
        if issubclass(projection, RedisProjection):
            return self._reached(conn, projection)

        def is_kept() -> bool:
            return is_shown_inline(conn, self._tables, projection)

        kept = self._kept_to(conn, is_kept)
        return read_position(conn, self._tables, projection) if kept is None else kept

    def _kept_to(self, conn: Connection, is_kept: Callable[[], bool]) -> Position | None:
        """Return up to where appends have kept the read model; None if they do not keep it."""
        if not is_kept():
            return None
        final = self.store.high_water_mark(conn)
        # If it was switched in between, what came then is not kept, and may be final.
        return final if is_kept() else None

    def _reached(self, conn: Connection, projection: type[AnyProjection]) -> Position | None:
        # Its own rows, which nobody may be reading yet.
        if not issubclass(projection, RedisProjection):
            kept = self._kept_to(
                conn, lambda: read_mode(conn, self._tables, projection) == "inline"
            )
            return read_own_position(conn, self._tables, projection) if kept is None else kept
        build = read_build(conn, self._tables, projection)
        with redis_answers():
            checkpoint = self._in_redis(projection).checkpoint()
        ours = checkpoint is not None and checkpoint.whole and checkpoint.build == str(build)
        return checkpoint.position if checkpoint is not None and ours else None

    def view(self, projection: type[RedisProjection]) -> RedisView:
        """Return what reads the read model that ``projection`` builds in Redis."""
        return RedisView(self._in_redis(projection))

    def async_view(
        self, client: AsyncRedis | AsyncRedisCluster, projection: type[RedisProjection]
    ) -> AsyncRedisView:
        """Return what reads it from asyncio, by a client of the same Redis."""
        return AsyncRedisView(client, self._redis_keys(projection))

    def _kept_by_appends(self, engine: Engine) -> ProjectionProgress:
        with fresh_reads(engine) as conn, reading(conn):
            return ProjectionProgress(0, self._source.high_water_mark(conn), caught_up=True)

    def _switch(self, projection: type[Projection], page_events: int) -> Switch:
        runner = self._runner(projection, page_events)
        if not isinstance(runner, TableRunner) or self.events_from is not None:
            raise ProjectionDefinitionError(
                projection.name,
                "only a Projection beside its events that folds in Python can be kept inline",
            )
        return Switch(runner, self._terms(), self.clock)

    @property
    def _source(self) -> EventStore:
        """The store as the runners read it."""
        if self.events_from is None:
            return self.store
        return EventsElsewhere.of(self.store, self.events_from)

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)

    def _terms(self) -> LeaseTerms:
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        return LeaseTerms(owner, self.lease_seconds)

    def _runner(
        self, projection: type[AnyProjection], page_events: int | None
    ) -> RedisRunner | TableRunner | SetRunner:
        if page_events is None:
            page_events = projection.page_events
        if issubclass(projection, RedisProjection):
            return RedisRunner(self._source, projection, self._in_redis(projection), page_events)
        if issubclass(projection, Projection):
            return TableRunner(self._source, projection, page_events)
        if issubclass(projection, SetProjection):
            if self.events_from is not None:
                raise ProjectionDefinitionError(
                    projection.name,
                    "its statements read events on the server of its tables; fold them in Python"
                    " by a Projection, or keep it where the events are",
                )
            return SetRunner.of(self.store, projection, page_events)
        raise TypeError(f"{projection.__name__} is no Projection, SetProjection or RedisProjection")

    def _in_redis(self, projection: type[RedisProjection]) -> RedisReadModel:
        if self.redis is None:
            raise SettingsError("redis", f"{projection.name} lives in Redis; give a client")
        return RedisReadModel(self.redis, self._redis_keys(projection))

    def _redis_keys(self, projection: type[RedisProjection]) -> RedisKeys:
        prefix = self.redis_prefix or self.store.schema
        return RedisKeys(prefix, projection.name, projection.version)
