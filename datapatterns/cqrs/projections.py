"""The projections of one schema: run them, wait for them, look at them."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

from sqlalchemy import Connection, Engine

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.leasing import read_position
from datapatterns.cqrs.progress import ProjectionProgress, ProjectionStatus
from datapatterns.cqrs.projecting import TableRunner
from datapatterns.cqrs.running import (
    CatchUp,
    LeaseTerms,
    Runner,
    Target,
    fresh_reads,
    leased,
    run_pages,
)
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.status import list_statuses
from datapatterns.cqrs.waiting import behind, wait_for
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore


@dataclass(frozen=True, slots=True)
class Projections:
    """Moves read models on behind the log of ``store``, each event exactly once.

    Attributes:
        store: Where the events are; checkpoints and leases are kept in the same schema.
        lease_seconds: How long after its latest page a runner keeps a projection to itself. A
            page that takes longer is undone if another runner has claimed it meanwhile.
        clock: What waiting goes by.
    """

    store: EventStore = field(default_factory=EventStore)
    lease_seconds: float = 30.0
    clock: Clock = field(default=SYSTEM_CLOCK, repr=False)

    def run(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        *,
        pages_max: int = 1,
        page_events: int = 5_000,
    ) -> ProjectionProgress:
        """Apply at most ``pages_max`` pages of events, each in a transaction of its own.

        Raises:
            LeaseHeldError: Another runner is at it.
            LeaseLostError: Another runner took over meanwhile; the page was undone.
            ProjectionStoppedError: An event cannot be applied; all before it were.
            ProjectionVersionError: The read model was built by another version; rebuild it.
        """
        runner = self._runner(projection, page_events)
        with (
            fresh_reads(engine) as conn,
            leased(conn, self._tables, projection, self._terms()) as latest,
        ):
            return run_pages(conn, runner, latest, pages_max=pages_max)

    def catch_up(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        *,
        until: Position | None = None,
        timeout_seconds: float = 60.0,
        page_events: int = 5_000,
        on_page: Callable[[ProjectionProgress], None] = lambda _: None,
    ) -> ProjectionProgress:
        """Return when the read model has reached ``until``, by this runner's work or another's.

        Args:
            engine: Where the events and the checkpoints are.
            projection: What to run.
            until: Where to stop looking; unless given, the end of the log as it is now.
            timeout_seconds: After this much no further page is begun.
            page_events: How many events one transaction applies at most.
            on_page: Called after each page, for a progress bar.

        Raises:
            ProjectionStoppedError: An event cannot be applied; all before it were.
            ProjectionVersionError: The read model was built by another version; rebuild it.
            ReadModelBehindError: The time has passed; what was applied stays.
        """
        deadline = self.clock.monotonic() + timeout_seconds
        with fresh_reads(engine) as conn:
            if until is None:
                with conn.begin():
                    until = self.store.high_water_mark(conn)
            work = CatchUp(
                self._tables,
                projection,
                self._runner(projection, page_events),
                self._terms(),
                self.clock,
                lambda conn: self.position(conn, projection),
            )
            return work.run(conn, Target(until, deadline), on_page)

    def wait(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        token: Position,
        *,
        timeout_seconds: float,
    ) -> Position:
        """Return how far the read model is, once it shows everything up to ``token``.

        Somebody else must be running the projection; this only looks.

        Args:
            engine: Where the checkpoints are.
            projection: Whose read model is about to be read.
            token: What an append returned as its position.
            timeout_seconds: How long to wait at most.

        Raises:
            ReadModelBehindError: It does not show ``token`` in time.
        """
        position = wait_for(
            engine,
            lambda conn: self.position(conn, projection),
            token,
            timeout_seconds=timeout_seconds,
            clock=self.clock,
        )
        if position is None or position < token:
            with engine.begin() as conn:
                raise behind(conn, self._tables, projection, position=position, token=token)
        return position

    def position(self, conn: Connection, projection: type[AnyProjection]) -> Position | None:
        """Return up to where the read model shows the log; None if it was never run."""
        return read_position(conn, self._tables, projection)

    def status(self, conn: Connection) -> list[ProjectionStatus]:
        """Return how each version of each projection stands, by name and version.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
        """
        return list_statuses(conn, self.store)

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)

    def _terms(self) -> LeaseTerms:
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        return LeaseTerms(owner, self.lease_seconds)

    def _runner(self, projection: type[AnyProjection], page_events: int) -> Runner:
        assert issubclass(projection, Projection)
        return TableRunner(self.store, projection, page_events)
