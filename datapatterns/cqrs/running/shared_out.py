"""Read models that several workers move on: how they stand, and who works at them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sqlalchemy import Connection

from datapatterns.clock import Clock
from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.running.declared import refuse_twins
from datapatterns.cqrs.running.progress import ProjectionStatus
from datapatterns.cqrs.running.running import LeaseTerms, Runner
from datapatterns.cqrs.running.status import count_unseen, list_statuses
from datapatterns.cqrs.running.working import ProjectionWorker
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
