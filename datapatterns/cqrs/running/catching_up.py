"""Bring a read model to where somebody waits for it, by one's own work or another's."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from datapatterns.clock import Clock
from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.running.pacing import POLL_SECONDS_MAX, POLL_SECONDS_MIN
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.runners import (
    LeaseTerms,
    Runner,
    begin_all,
    leased,
    page_of_each,
)
from datapatterns.cqrs.running.segments import make_whole
from datapatterns.errors import (
    LeaseHeldError,
    LeaseLostError,
    ProjectionModeError,
    ReadModelBehindError,
)
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import looking


@dataclass(frozen=True, slots=True)
class Target:
    """Where a read model is to be, and until when."""

    position: Position
    deadline: float


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Brings a read model to a target, whoever does the work."""

    store: EventStore
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
        with leased(conn, self.store, self.projection, self.terms) as latest:
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
