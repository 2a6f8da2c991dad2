"""What moves projections on, page by page, and under which leases."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.running.leasing import Lease, claim, release
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.registering import register_to_follow
from datapatterns.cqrs.schema import projection_tables
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.transactions import resuming


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
def leased(
    conn: Connection,
    store: EventStore,
    projection: type[AnyProjection],
    terms: LeaseTerms,
) -> Iterator[list[Lease]]:
    """Register, claim and give back; the list holds the latest leases, by segment.

    Raises:
        LeaseHeldError: Others have them all.
        ProjectionVersionError: The read model was built by another version.
    """
    tables = projection_tables(store.schema)
    with resuming(conn, f"the lease on projection {projection.name}"):
        register_to_follow(conn, store, projection)
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
