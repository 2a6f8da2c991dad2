"""Move a read model in tables on: each page in one transaction with the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from datapatterns.cqrs.definition import Projection
from datapatterns.cqrs.running.advancing import (
    BarrierError,
    advance,
    bound_silence,
    current_barrier,
)
from datapatterns.cqrs.running.bells import ring
from datapatterns.cqrs.running.events_elsewhere import (
    check_followed_log,
    note_followed_log,
    note_idle,
)
from datapatterns.cqrs.running.fencing import telling_fenced
from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.running.paging import PageOfEvents, read_page
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.segments import Segment
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.poison import (
    Dealt,
    Folding,
    apply_beside_parked,
    apply_what_can_be,
    known_parked,
)
from datapatterns.cqrs.tables.projecting import UnappliableError
from datapatterns.cqrs.tables.versions import read_models_for
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.transactions import resuming


@dataclass(frozen=True, slots=True)
class TableRunner:
    """Moves a `Projection` on, page by page.

    Attributes:
        marks: Up to where the log was final when a segment was last read, and to which checkpoint
            that page led. A mark counts for nothing unless this is the checkpoint now: the commit
            of the page has then made durable what was drawn below the mark. Before, a server that
            crashes may draw the same positions again.
    """

    store: EventStore
    projection: type[Projection]
    page_events: int
    marks: dict[Segment, tuple[Position, Position | None]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def begin(self, _conn: Connection, lease: Lease) -> Lease:
        """Return the lease; its checkpoint is the truth, for it lies beside the rows."""
        return lease

    def page(
        self, conn: Connection, lease: Lease, *, persist: bool = True
    ) -> tuple[Lease, ProjectionProgress]:
        """Apply one page in a transaction of its own.

        Raises:
            CommitUnansweredError: Whether it was applied, the next lease's checkpoint says.
            LeaseLostError: Another runner has the lease; nothing was applied.
            ProjectionStoppedError: An event cannot be applied; those before it were.
        """
        with telling_fenced(conn, projection_tables(self.store.schema), lease):
            return self._page(conn, lease, persist=persist)

    def _page(
        self, conn: Connection, lease: Lease, *, persist: bool
    ) -> tuple[Lease, ProjectionProgress]:
        try:
            with resuming(conn, self._a_page):
                lease, progress = self._whole_page(conn, lease, persist=persist)
            stopped = None
        except BarrierError as barred:
            # Set while the page was under way, which is undone.
            return _barred(lease, barred)
        except UnappliableError:
            # Rolled back. Once more, with savepoints: they cost too much for every page.
            try:
                with resuming(conn, self._a_page):
                    dealt = self._deal_with_poison(conn, lease)
                    lease = self._record(conn, lease, dealt)
            except BarrierError as barred:
                return _barred(lease, barred)
            progress = ProjectionProgress(dealt.events, dealt.position, dealt.caught_up)
            stopped = dealt.stopped
        failpoint("projection.page-committed")
        ring(self.store.schema, self.projection.name)
        if stopped is not None:
            raise stopped from stopped.__cause__
        return lease, progress

    def page_within(self, conn: Connection, lease: Lease) -> tuple[Lease, ProjectionProgress]:
        """Apply one page in the caller's transaction.

        Raises:
            UnappliableError: It holds an event that cannot be applied; roll back.
        """
        return self._whole_page(conn, lease, persist=True)

    def _whole_page(
        self, conn: Connection, lease: Lease, *, persist: bool
    ) -> tuple[Lease, ProjectionProgress]:
        page = self._read(conn, lease)
        progress = ProjectionProgress(len(page.events), page.checkpoint, page.caught_up)
        if page.events:
            bound_silence(conn, lease)
        known = known_parked(conn, self._tables, lease)
        if page.events and known is not None:
            dealt = apply_beside_parked(conn, self._folding(lease), page, known)
            return self._record(conn, lease, dealt), progress
        if page.events:
            self._folding(lease).apply(conn, page.events)
        elif not persist:
            return replace(lease, seen=page.checkpoint), progress
        if page.checkpoint != lease.position:
            lease = self._advance(conn, lease, page.checkpoint)
        elif page.caught_up:
            note_idle(conn, self._tables, self.store, lease)
        return lease, progress

    def _deal_with_poison(self, conn: Connection, lease: Lease) -> Dealt:
        page = self._read(conn, lease)
        bound_silence(conn, lease)
        known = known_parked(conn, self._tables, lease)
        return apply_what_can_be(
            conn, self._folding(lease), page, after=lease.position, known=known
        )

    def _record(self, conn: Connection, lease: Lease, dealt: Dealt) -> Lease:
        parked = dealt.record(conn, self._tables, lease)
        return self._advance(conn, lease, dealt.position, error=dealt.error, parked=parked)

    def _folding(self, lease: Lease) -> Folding:
        return Folding(
            self.store,
            self.projection,
            read_models_for(self.projection, lease.status),
            lease.segment,
            sends=lease.status == "live",
        )

    def _read(self, conn: Connection, lease: Lease) -> PageOfEvents:
        check_followed_log(conn, self._tables, self.store, lease)
        led_to, mark = self.marks.get(lease.segment, (None, None))
        page = read_page(
            conn,
            self.store,
            self.projection,
            lease.read_to,
            self.page_events,
            until=current_barrier(conn, self._tables, lease),
            mark=mark if led_to == lease.position else None,
        )
        self.marks[lease.segment] = page.checkpoint, page.mark
        return page

    def _advance(
        self,
        conn: Connection,
        lease: Lease,
        position: Position,
        *,
        error: Mapping[str, Any] | None = None,
        parked: int | None = None,
    ) -> Lease:
        failpoint("projection.page-applied")
        moved = advance(conn, self._tables, lease, position, error=error, parked=parked)
        _, mark = self.marks.get(lease.segment, (None, None))
        note_followed_log(conn, self._tables, self.store, moved, mark=mark)
        return moved

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)

    @property
    def _a_page(self) -> str:
        return f"a page of projection {self.projection.name}"


def _barred(lease: Lease, barred: BarrierError) -> tuple[Lease, ProjectionProgress]:
    progress = ProjectionProgress(0, lease.position, caught_up=False)
    return replace(lease, barrier=barred.barrier, seen=None), progress
