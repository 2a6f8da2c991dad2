"""Loops that move projections on; together with rebuild and verify, all that opens transactions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol

from sqlalchemy import Connection, Engine, select

from datapatterns.clock import Clock
from datapatterns.cqrs.definition import AnyProjection, TableProjection
from datapatterns.cqrs.running.leasing import Lease, claim, release
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.running.segments import make_whole
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.errors import (
    LeaseHeldError,
    LeaseLostError,
    ProjectionModeError,
    ReadModelBehindError,
)
from datapatterns.event_sourcing.events import START, Position
from datapatterns.failpoints import failpoint
from datapatterns.transactions import looking, resuming

POLL_SECONDS_MIN: Final = 0.002
POLL_SECONDS_MAX: Final = 0.05


class Runner(Protocol):
    """Moves one kind of projection on."""

    def begin(self, conn: Connection, lease: Lease) -> Lease:
        """Find out how far the read model really is, under a new lease."""
        ...

    def page(
        self, conn: Connection, lease: Lease, *, persist: bool = True
    ) -> tuple[Lease, ProjectionProgress]:
        """Apply one page, in transactions of its own.

        Args:
            conn: A connection without a transaction.
            lease: Under which lease.
            persist: Move the checkpoint also past what concerns no handler.
        """
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
    """Register, claim and give back; the list holds the latest leases, by segment.

    Raises:
        LeaseHeldError: Others have them all.
        ProjectionVersionError: The read model was built by another version.
    """
    with resuming(conn, f"the lease on projection {projection.name}"):
        register(conn, tables, projection, empty=is_empty(conn, projection))
        latest = claim(conn, tables, projection, owner=terms.owner, seconds=terms.seconds)
    failpoint("projection.lease-claimed")
    try:
        yield latest
    finally:
        # After a lost connection there is nothing to give back with; the lease lapses.
        if not conn.invalidated:
            with resuming(conn, f"giving back projection {projection.name}"):
                for lease in latest:
                    release(conn, tables, lease)


def begin_all(conn: Connection, runner: Runner, latest: list[Lease]) -> None:
    """Find out how far each segment of the read model really is."""
    for place, lease in enumerate(latest):
        latest[place] = runner.begin(conn, lease)


def page_of_each(conn: Connection, runner: Runner, latest: list[Lease]) -> ProjectionProgress:
    """Apply a page of each segment; the position is that of the segment which is last."""
    events, caught_up = 0, True
    for place, lease in enumerate(latest):
        latest[place], done = runner.page(conn, lease)
        events += done.events
        caught_up = caught_up and done.caught_up
    return ProjectionProgress(events, min(lease.position for lease in latest), caught_up)


def run_pages(
    conn: Connection,
    runner: Runner,
    latest: list[Lease],
    *,
    pages_max: int,
) -> ProjectionProgress:
    """Apply at most ``pages_max`` pages of each segment, fewer if that catches up."""
    begin_all(conn, runner, latest)
    events = 0
    for _ in range(pages_max - 1):
        done = page_of_each(conn, runner, latest)
        events += done.events
        if done.caught_up:
            return ProjectionProgress(events, done.position, done.caught_up)
    done = page_of_each(conn, runner, latest)
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
                done = self._done_by_others(conn)
            except ProjectionModeError:
                # Appends are, and one of them may still be open: up to where it is whole they say.
                done = self._done_by_others(conn)
                done = replace(done, caught_up=done.position >= target.position)
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

    def _done_by_others(self, conn: Connection, events: int = 0) -> ProjectionProgress:
        with looking(conn):
            position = self.reached(conn)
        return ProjectionProgress(events, position or START, caught_up=False)

    def _pages(
        self,
        conn: Connection,
        target: Target,
        on_page: Callable[[ProjectionProgress], None],
    ) -> ProjectionProgress:
        events = 0
        with leased(conn, self.tables, self.projection, self.terms) as latest:
            begin_all(conn, self.runner, latest)
            while True:
                done = page_of_each(conn, self.runner, latest)
                events += done.events
                on_page(done)
                late = self.clock.monotonic() >= target.deadline
                if done.caught_up or done.position >= target.position or late:
                    break
            segments = [lease.segment for lease in latest]
        if make_whole(segments):
            return ProjectionProgress(events, done.position, done.caught_up)
        return self._done_by_others(conn, events)


def is_empty(conn: Connection, projection: type[AnyProjection]) -> bool:
    """Return whether a projection that was never run can begin with what is there."""
    if not issubclass(projection, TableProjection):
        return True  # a read model in Redis says itself what it holds
    return all(
        conn.execute(select(1).select_from(model.table).limit(1)).first() is None
        for model in read_models_of(projection).values()
    )
