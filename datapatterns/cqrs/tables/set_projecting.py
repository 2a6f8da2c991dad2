"""One range of the log into tables by statements, in one transaction with the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection

from datapatterns.cqrs.running.advancing import (
    BarrierError,
    advance,
    bound_silence,
    current_barrier,
)
from datapatterns.cqrs.running.bells import ring
from datapatterns.cqrs.running.fencing import telling_fenced
from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.running.parking import WHOLE_EVENT, Unapplied, skip
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.set_definition import SetProjection
from datapatterns.cqrs.tables.projecting import UnappliableError, message_of
from datapatterns.cqrs.tables.set_applying import (
    EventRange,
    Failing,
    PlacedEvent,
    apply_range,
    find_failing,
)
from datapatterns.cqrs.tables.set_reading import RangeReader, Refused, SetPage
from datapatterns.cqrs.tables.versions import read_models_for
from datapatterns.errors import ProjectionStoppedError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.transactions import resuming


@dataclass(frozen=True, slots=True)
class SetRunner:
    """Moves a `SetProjection` on, range by range."""

    reader: RangeReader

    @classmethod
    def of(
        cls, store: EventStore, projection: type[SetProjection], page_events: int
    ) -> "SetRunner":
        """Return what moves ``projection`` on by so many events a transaction at most."""
        return cls(RangeReader(store, projection, page_events))

    @property
    def store(self) -> EventStore:
        """Where the events and the checkpoints are."""
        return self.reader.store

    @property
    def projection(self) -> type[SetProjection]:
        """What it moves on."""
        return self.reader.projection

    @property
    def page_events(self) -> int:
        """How many events one transaction applies at most."""
        return self.reader.limit

    def begin(self, _conn: Connection, lease: Lease) -> Lease:
        """Return the lease; its checkpoint is the truth, for it lies beside the rows."""
        return lease

    def page(
        self, conn: Connection, lease: Lease, *, persist: bool = True
    ) -> tuple[Lease, ProjectionProgress]:
        """Apply one range in a transaction of its own.

        Raises:
            CommitUnansweredError: Whether it was applied, the next lease's checkpoint says.
            LeaseLostError: Another runner has the lease; nothing was applied.
            ProjectionDefinitionError: Its statements are none that could be run.
            ProjectionStoppedError: An event cannot be applied; those before it were.
        """
        with telling_fenced(conn, projection_tables(self.store.schema), lease):
            return self._page(conn, lease, persist=persist)

    def _page(
        self, conn: Connection, lease: Lease, *, persist: bool
    ) -> tuple[Lease, ProjectionProgress]:
        try:
            try:
                with resuming(conn, self._a_page):
                    lease, done, stopped = self._whole_page(conn, lease, persist=persist)
            except UnappliableError:
                # Rolled back. Once more, with savepoints.
                with resuming(conn, self._a_page):
                    lease, done, stopped = self._applicable_part(conn, lease)
        except BarrierError as barred:
            # Set while the page was under way, which is undone.
            return replace(lease, barrier=barred.barrier, seen=None), ProjectionProgress(
                0, lease.position, caught_up=False
            )
        failpoint("projection.page-committed")
        ring(self.store.schema, self.projection.name)
        if stopped is not None:
            raise stopped from stopped.__cause__
        return lease, done

    def _whole_page(
        self, conn: Connection, lease: Lease, *, persist: bool = True
    ) -> tuple[Lease, ProjectionProgress, ProjectionStoppedError | None]:
        page = self._survey(conn, lease)
        if not (persist or page.events or page.refused):
            lease = replace(lease, seen=page.checkpoint)
            return lease, ProjectionProgress(0, page.checkpoint, page.caught_up), None
        self._apply(conn, lease, page.range)
        if page.refused is not None:
            record, stopped = describe_refusal(self.projection, page.refused)
            lease = self._advance(conn, lease, page.checkpoint, error=record)
            return lease, ProjectionProgress(page.events, page.checkpoint, caught_up=False), stopped
        if page.checkpoint != lease.position:
            lease = self._advance(conn, lease, page.checkpoint)
        return lease, ProjectionProgress(page.events, page.checkpoint, page.caught_up), None

    def _applicable_part(
        self, conn: Connection, lease: Lease
    ) -> tuple[Lease, ProjectionProgress, ProjectionStoppedError | None]:
        page = self._survey(conn, lease)
        models = read_models_for(self.projection, lease.status)
        failing = find_failing(conn, self.store, self.projection, models, page.range)
        if failing is None:  # not any more
            return self._whole_page(conn, lease)
        poison = failing.event.position
        before = Position(max(lease.position, poison - 1))
        part = self._survey(conn, lease, until=before)
        self._apply(conn, lease, part.range)
        if self.projection.on_poison == "skip" and not failing.is_packed:
            tables = projection_tables(self.store.schema)
            skip(conn, tables, lease, [describe_skipped(failing)])
            lease = self._advance(conn, lease, poison)
            return lease, ProjectionProgress(part.events + 1, poison, caught_up=False), None
        record, stopped = describe_failure(self.projection, failing)
        lease = self._advance(conn, lease, before, error=record)
        return lease, ProjectionProgress(part.events, before, caught_up=False), stopped

    def _survey(self, conn: Connection, lease: Lease, until: Position | None = None) -> SetPage:
        if until is None:
            until = current_barrier(conn, projection_tables(self.store.schema), lease)
        return self.reader.next_range(
            conn,
            lease.read_to,
            until=until,
            segment=lease.segment,
            durable=lease.read_to == lease.position,
        )

    def _apply(self, conn: Connection, lease: Lease, events: EventRange) -> None:
        bound_silence(conn, lease)
        models = read_models_for(self.projection, lease.status)
        apply_range(conn, self.store, self.projection, models, events)

    def _advance(
        self,
        conn: Connection,
        lease: Lease,
        position: Position,
        *,
        error: Mapping[str, Any] | None = None,
    ) -> Lease:
        failpoint("projection.page-applied")
        return advance(conn, projection_tables(self.store.schema), lease, position, error=error)

    @property
    def _a_page(self) -> str:
        return f"a page of projection {self.projection.name}"


def describe_refusal(
    projection: type[SetProjection], refused: Refused
) -> tuple[dict[str, Any], ProjectionStoppedError]:
    """Return what to keep and what to raise where SQL cannot read an event."""
    return _described(projection, refused.event, "UnreadableEvent", refused.reason)


def describe_failure(
    projection: type[SetProjection], failing: Failing
) -> tuple[dict[str, Any], ProjectionStoppedError]:
    """Return what to keep and what to raise where an event makes a statement fail."""
    if failing.is_packed:
        return describe_refusal(projection, Refused(failing.event, _PACKED))
    error = failing.error.__cause__ or failing.error
    record, stopped = _described(projection, failing.event, type(error).__name__, message_of(error))
    stopped.__cause__ = error
    return record, stopped


def describe_skipped(failing: Failing) -> Unapplied:
    """Return what to keep of an event that is left out."""
    error = failing.error.__cause__ or failing.error
    return Unapplied(
        WHOLE_EVENT,
        failing.event.position,
        failing.event.event_type,
        type(error).__name__,
        message_of(error),
    )


def _described(
    projection: type[SetProjection], event: PlacedEvent, error: str, message: str
) -> tuple[dict[str, Any], ProjectionStoppedError]:
    stopped = ProjectionStoppedError(
        projection.name,
        position=event.position,
        event_type=event.event_type,
        reason=f"{error}: {message}",
    )
    record = {
        "position": event.position,
        "event_type": event.event_type,
        "error": error,
        "message": message,
    }
    return record, stopped


_PACKED: Final = (
    "a codec has packed, compressed or encrypted its data, which SQL does not read; fold it in"
    " Python by a Projection"
)
