"""Loops that move projections on; together with rebuild and verify, all that opens transactions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from sqlalchemy import Connection, Engine, select

from datapatterns.clock import Clock
from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.running.leasing import Lease, claim, release
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.cqrs.tables.read_model import read_model_of
from datapatterns.errors import LeaseHeldError, LeaseLostError, ReadModelBehindError
from datapatterns.event_sourcing.events import START, Position
from datapatterns.failpoints import failpoint
from datapatterns.transactions import reading, resuming

POLL_SECONDS_MIN: Final = 0.002
POLL_SECONDS_MAX: Final = 0.05


class Runner(Protocol):
    """Moves one kind of projection on."""

    def begin(self, conn: Connection, lease: Lease) -> Lease:
        """Find out how far the read model really is, under a new lease."""
        ...

    def page(self, conn: Connection, lease: Lease) -> tuple[Lease, ProjectionProgress]:
        """Apply one page, in transactions of its own."""
        ...


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """Under which name, and for how long after each page, a runner keeps a projection."""

    owner: str
    seconds: float


@contextmanager
def fresh_reads(engine: Engine) -> Iterator[Connection]:
    """Give a connection of the kind that reading the log needs, whatever the engine's default."""
    with engine.connect() as conn:
        yield conn.execution_options(isolation_level="READ COMMITTED")


@contextmanager
def leased(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    terms: LeaseTerms,
) -> Iterator[list[Lease]]:
    """Register, claim and give back; the list holds the latest lease.

    Raises:
        LeaseHeldError: Another runner has it.
        ProjectionVersionError: The read model was built by another version.
    """
    with resuming(conn, f"the lease on projection {projection.name}"):
        register(conn, tables, projection, empty=is_empty(conn, projection))
        lease = claim(conn, tables, projection, owner=terms.owner, seconds=terms.seconds)
    latest = [lease]
    failpoint("projection.lease-claimed")
    try:
        yield latest
    finally:
        # After a lost connection there is nothing to give back with; the lease lapses.
        if not conn.invalidated:
            with resuming(conn, f"giving back projection {projection.name}"):
                release(conn, tables, latest[0])


def run_pages(
    conn: Connection,
    runner: Runner,
    latest: list[Lease],
    *,
    pages_max: int,
) -> ProjectionProgress:
    """Apply at most ``pages_max`` pages, fewer if that catches up."""
    latest[0] = runner.begin(conn, latest[0])
    events = 0
    for _ in range(pages_max - 1):
        latest[0], done = runner.page(conn, latest[0])
        events += done.events
        if done.caught_up:
            return ProjectionProgress(events, done.position, done.caught_up)
    latest[0], done = runner.page(conn, latest[0])
    return ProjectionProgress(events + done.events, done.position, done.caught_up)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a read model is to be, and until when."""

    position: Position
    deadline: float


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Brings a read model to a target, whoever does the work."""

    tables: ProjectionTables
    projection: type[AnyProjection]
    runner: Runner
    terms: LeaseTerms
    clock: Clock
    reached: Callable[[Connection], Position | None]

    def run(
        self,
        conn: Connection,
        target: Target,
        on_page: Callable[[ProjectionProgress], None],
    ) -> ProjectionProgress:
        """Return when the read model has reached the target.

        Raises:
            ReadModelBehindError: The deadline has passed.
        """
        events, pause = 0, POLL_SECONDS_MIN
        while True:
            try:
                done = self._pages(conn, target, on_page)
            except (LeaseHeldError, LeaseLostError):
                # Somebody else is at it, which serves as well.
                with reading(conn):
                    position = self.reached(conn)
                done = ProjectionProgress(0, position or START, caught_up=False)
            events += done.events
            if done.position >= target.position:
                return ProjectionProgress(events, done.position, done.caught_up)
            if self.clock.monotonic() >= target.deadline:
                raise ReadModelBehindError(
                    self.projection.name, position=done.position, token=target.position
                )
            # Nothing was final, or somebody else has the lease.
            pause = POLL_SECONDS_MIN if done.events else min(2 * pause, POLL_SECONDS_MAX)
            self.clock.sleep(pause)

    def _pages(
        self,
        conn: Connection,
        target: Target,
        on_page: Callable[[ProjectionProgress], None],
    ) -> ProjectionProgress:
        events = 0
        with leased(conn, self.tables, self.projection, self.terms) as latest:
            latest[0] = self.runner.begin(conn, latest[0])
            while True:
                latest[0], done = self.runner.page(conn, latest[0])
                events += done.events
                on_page(done)
                late = self.clock.monotonic() >= target.deadline
                if done.caught_up or done.position >= target.position or late:
                    return ProjectionProgress(events, done.position, done.caught_up)


def is_empty(conn: Connection, projection: type[AnyProjection]) -> bool:
    """Return whether a projection that was never run can begin with what is there."""
    if not issubclass(projection, Projection):
        return True  # a read model in Redis says itself what it holds
    table = read_model_of(projection).table
    return conn.execute(select(1).select_from(table).limit(1)).first() is None
