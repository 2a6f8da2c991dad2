"""Read models that several workers move on: how they stand, and who works at them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from datapatterns.clock import Clock
from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.running.declared import refuse_twins
from datapatterns.cqrs.running.progress import ProjectionStatus
from datapatterns.cqrs.running.resegmenting import Resegmenting
from datapatterns.cqrs.running.runners import LeaseTerms, Runner
from datapatterns.cqrs.running.status import count_unseen, list_statuses
from datapatterns.cqrs.running.working import ProjectionWorker
from datapatterns.cqrs.tables.splittable import refuse_unsplittable
from datapatterns.event_sourcing.store import EventStore
from datapatterns.telemetry import SILENT, Observer


class SharedOut(ABC):
    """What `Projections` has for those who run them with several workers."""

    __slots__ = ()

    clock: Clock
    declared: Sequence[type[AnyProjection]]

    @property
    @abstractmethod
    def _source(self) -> EventStore:
        """Return the store as runners read it."""

    @abstractmethod
    def _runner(self, projection: type[AnyProjection], page_events: int | None) -> Runner:
        """Return what moves ``projection`` on."""

    @abstractmethod
    def _terms(self) -> LeaseTerms:
        """Return under which name, new each time, and for how long it keeps segments."""

    def status(self, conn: Connection) -> list[ProjectionStatus]:
        """Return how each version of each projection stands, by name and version.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
        """
        return list_statuses(conn, self._source)

    def events_behind(self, conn: Connection, status: ProjectionStatus) -> int:
        """Return how many events a version has not seen: exactly, so it reads what they lie in.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
        """
        return count_unseen(conn, self._source, status.position)

    def worker(
        self,
        declared: Sequence[type[AnyProjection]] | None = None,
        *,
        page_events: int | None = None,
        observer: Observer = SILENT,
    ) -> ProjectionWorker:
        """Return one of any number of workers that share what is declared; `step` it.

        Args:
            declared: What it runs; all that is declared here unless given.
            page_events: How many events one transaction applies at most; what suits the
                projection unless given.
            observer: Is told of events, pages and failures.

        Raises:
            ProjectionDefinitionError: A version of a projection is declared twice.
        """
        wanted = self.declared if declared is None else declared
        refuse_twins(wanted)
        return ProjectionWorker(
            self._source,
            tuple(wanted),
            self._terms(),
            self.clock,
            lambda projection: self._runner(projection, page_events),
            observer,
        )

    def split(
        self, engine: Engine, projection: type[AnyProjection], *, shard: int | None = None
    ) -> int:
        """Split a segment in two that two workers may move on; return how many there are now.

        Whoever moves it on loses the page that is under way, and goes on with what is there then.

        Args:
            engine: Where the leases are.
            projection: Which one, in the version that is declared.
            shard: Which segment; the one with most keys unless given.

        Raises:
            ReadModelBuildingError: It was never run, or is not whole.
            SegmentError: It cannot be split: it is in Redis, or kept inline, or its rows depend on
                each other.
            SegmentKeyError: Its keys do not look the same in every process.
            SegmentsBusyError: Another version is taking its place.
        """
        return self._resegmenting(projection, timeout_seconds=0).split(engine, shard)

    def merge(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        *,
        shard: int | None = None,
        timeout_seconds: float = 60.0,
    ) -> int:
        """Merge a segment with what it was split from; return how many there are now.

        The one that is behind is moved on to where the other is, by this call.

        Args:
            engine: Where the leases are.
            projection: Which one, in the version that is declared.
            shard: Which segment; the one with fewest keys unless given.
            timeout_seconds: How long that may take.

        Raises:
            ProjectionStoppedError: The one that is behind cannot be moved on.
            ReadModelBehindError: It was not moved on in time; what was done stays.
            ReadModelBuildingError: It was never run, or is not whole.
            SegmentError: There is one only, or none of that number.
            SegmentsBusyError: Another version is taking its place.
        """
        return self._resegmenting(projection, timeout_seconds=timeout_seconds).merge(engine, shard)

    def split_into(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        count: int,
        *,
        timeout_seconds: float = 60.0,
    ) -> int:
        """Split and merge until there are ``count`` segments, a power of two; return the number.

        More than one worker can only be busy with as many.

        Args:
            engine: Where the leases are.
            projection: Which one, in the version that is declared.
            count: How many.
            timeout_seconds: How long each merge may take.

        Raises:
            ProjectionStoppedError: As `merge`.
            ReadModelBehindError: As `merge`.
            ReadModelBuildingError: It was never run, or is not whole.
            SegmentError: As `split`, or ``count`` is not a power of two up to 1,024.
            SegmentKeyError: As `split`.
            SegmentsBusyError: Another version is taking its place.
        """
        work = self._resegmenting(projection, timeout_seconds=timeout_seconds)
        return work.split_into(engine, count)

    def _resegmenting(
        self, projection: type[AnyProjection], *, timeout_seconds: float
    ) -> Resegmenting:
        return Resegmenting(
            self._source,
            projection,
            lambda: self._runner(projection, None),
            self._terms(),
            self.clock,
            lambda conn: refuse_unsplittable(conn, projection),
            timeout_seconds,
        )
