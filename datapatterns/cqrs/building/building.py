"""Build a version in tables beside the live ones, and let it follow the log there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, Engine

from datapatterns.clock import Clock
from datapatterns.cqrs.building.beginning import ShadowBuild, segment_count
from datapatterns.cqrs.building.building_progress import BuildProgress, Meter
from datapatterns.cqrs.building.segment_building import SegmentBuild
from datapatterns.cqrs.building.unbuilt import claim_unbuilt
from datapatterns.cqrs.building.version_records import read_segments, read_versions
from datapatterns.cqrs.definition import TableProjection
from datapatterns.cqrs.running.leasing import Lease, release
from datapatterns.cqrs.running.pacing import POLL_SECONDS_MAX
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.runners import LeaseTerms, Runner
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.errors import LeaseLostError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.sql.server import library_errors
from datapatterns.transactions import fresh_reads, reading, resuming


@dataclass(frozen=True, slots=True)
class BuildManner:
    """How a version is built.

    Attributes:
        workers: How many threads fold at once, each its own segment.
        rows_max: More rows than this none of them holds in memory.
        page_events: How many events are read at once.
    """

    workers: int
    rows_max: int
    page_events: int
    on_page: Callable[[ProjectionProgress], None]
    on_progress: Callable[[BuildProgress], None]

    def __post_init__(self) -> None:
        if self.workers < 1 or self.rows_max < 1:
            raise ValueError("a build needs at least one worker, and room for a row")


@dataclass(frozen=True, slots=True)
class TableBuild:
    """Builds one version.

    Attributes:
        terms: Who says so; each worker has a name of its own.
    """

    store: EventStore
    projection: type[TableProjection]
    runner: Runner
    terms: LeaseTerms
    manner: BuildManner
    clock: Clock

    def run(self, engine: Engine) -> ProjectionProgress | None:
        """Return when this version is whole, in tables of its own, up to the end of the log.

        Returns:
            None if there is no other live version to build it beside.
        """
        with fresh_reads(engine) as conn:
            with library_errors("the database"), resuming(conn, self._this):
                build = self._shadows.begin(conn, segments=segment_count(self._workers))
            if build is None:
                return None
            failpoint("build.begun")
            with reading(conn):
                target = self.store.high_water_mark(conn)
        meter = Meter(target, segment_count(self._workers), self.clock.monotonic())
        self._build_segments(engine, build, target, meter)
        failpoint("build.segments-built")
        with (
            library_errors("the database"),
            fresh_reads(engine) as conn,
            resuming(conn, self._this),
        ):
            self._shadows.finish(conn, build, target)
        failpoint("build.finished")
        return ProjectionProgress(meter.events, target, caught_up=True)

    def _build_segments(self, engine: Engine, build: UUID, target: Position, meter: Meter) -> None:
        if self._workers == 1:
            self._work(engine, build, target, meter, self.terms)
            return
        with ThreadPoolExecutor(self._workers) as pool:
            works = [
                pool.submit(
                    self._work,
                    engine,
                    build,
                    target,
                    meter,
                    LeaseTerms(f"{self.terms.owner}/{number}", self.terms.seconds),
                )
                for number in range(self._workers)
            ]
            for work in works:
                work.result()

    def _work(
        self, engine: Engine, build: UUID, target: Position, meter: Meter, terms: LeaseTerms
    ) -> None:
        def count(lease: Lease, events: int, position: Position) -> None:
            shard = lease.segment.shard
            progress = meter.count(shard, events, position, self.clock.monotonic())
            self.manner.on_page(ProjectionProgress(events, position, caught_up=False))
            self.manner.on_progress(progress)

        def add_keys(conn: Connection) -> None:
            with resuming(conn, self._this):
                self._shadows.add_keys(conn)

        part = SegmentBuild(
            self.store,
            self.projection,
            self.runner,
            self.manner.page_events,
            self.manner.rows_max,
            add_keys,
            count,
        )
        with fresh_reads(engine) as conn:
            while not self._is_done(conn, build, target):
                with resuming(conn, self._this):
                    lease = claim_unbuilt(
                        conn, self._tables, self.projection, build=build, below=target, terms=terms
                    )
                if lease is None:  # somebody else is at the rest
                    self.clock.sleep(POLL_SECONDS_MAX)
                    continue
                failpoint("build.segment-claimed")
                try:
                    lease = part.run(conn, lease, target)
                finally:
                    # Its epoch stays what it was, however far it got.
                    if not conn.invalidated:
                        with resuming(conn, self._this):
                            release(conn, self._tables, lease)

    def _is_done(self, conn: Connection, build: UUID, target: Position) -> bool:
        name, version = self.projection.name, self.projection.version
        with reading(conn):
            known = read_versions(conn, self._tables, name)
            segments = read_segments(conn, self._tables, name, version)
        # One that was retired keeps its segments, which nobody can claim.
        is_built = version in known and known[version].status == "building"
        if not is_built or not segments or any(segment.build != build for segment in segments):
            raise LeaseLostError(self._this, epoch=0)
        return all(segment.position >= target for segment in segments)

    @property
    def _workers(self) -> int:
        # Of statements that are not additive there is one segment, which cannot be split.
        return self.manner.workers if self.projection.is_splittable else 1

    @property
    def _shadows(self) -> ShadowBuild:
        return ShadowBuild(self.store.schema, self.projection)

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)

    @property
    def _this(self) -> str:
        return f"the build of projection {self.projection.name}"
