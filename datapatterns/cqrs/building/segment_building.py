"""Build one segment: fold the log in memory, then write all rows at once with the checkpoint.

A builder that dies has written nothing, so the next one begins at the first event again. Where
memory would not do, and where an event cannot be applied, it goes on page by page like any runner:
that has a checkpoint for each page, and knows what becomes of such an event.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from datapatterns.cqrs.building.copying import copy_rows
from datapatterns.cqrs.definition import Projection, TableProjection
from datapatterns.cqrs.running.advancing import advance
from datapatterns.cqrs.running.events_elsewhere import note_followed_log
from datapatterns.cqrs.running.fencing import telling_fenced
from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.running.paging import read_page
from datapatterns.cqrs.running.runners import Runner
from datapatterns.cqrs.running.segments import Segment
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.folding import RowsByTable, fold_steps, plan_steps
from datapatterns.cqrs.tables.projecting import UnappliableError
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.cqrs.tables.versions import read_models_for
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.log.decoding import decode_each
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.sql.long_statements import allow_long_statements
from datapatterns.transactions import resuming

OnRead = Callable[[Lease, int, Position], None]
"""Called with how many events were read, and up to where."""


@dataclass(slots=True)
class Folded:
    """What the log up to a position gives for the keys of one segment.

    Attributes:
        rows: Those that exist.
        position: Up to where.
        failed: The page that follows holds an event that cannot be applied.
    """

    rows: RowsByTable
    position: Position = START
    failed: bool = False

    @property
    def size(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.rows.values()))


@dataclass(frozen=True, slots=True)
class SegmentBuild:
    """Builds segments of one version.

    Attributes:
        runner: What applies pages to the tables.
        rows_max: More rows than this are not held in memory.
        add_keys: Gives the tables their keys, which pages need.
    """

    store: EventStore
    projection: type[TableProjection]
    runner: Runner
    page_events: int
    rows_max: int
    add_keys: Callable[[Connection], None]
    on_read: OnRead

    def run(self, conn: Connection, lease: Lease, target: Position) -> Lease:
        """Return the lease when its segment shows everything up to ``target``.

        Raises:
            LeaseLostError: Somebody builds it anew.
            ProjectionStoppedError: An event cannot be applied.
        """
        if lease.position == START and issubclass(self.projection, Projection):
            lease = self._in_memory(conn, lease, self.projection, target)
        if lease.position < target:
            self.add_keys(conn)
        while lease.position < target:
            lease, done = self.runner.page(conn, lease)
            self.on_read(lease, done.events, lease.position)
        return lease

    def _in_memory(
        self, conn: Connection, lease: Lease, projection: type[Projection], target: Position
    ) -> Lease:
        lease, folded = self._fold(conn, lease, projection, target)
        if folded.failed:
            # That page has changed some rows before it failed; all before it will do again.
            before, folded = folded.position, Folded({})
            if before > START:
                lease, folded = self._fold(conn, lease, projection, before)
        failpoint("build.folded")
        try:
            # Its tables are gone if it was retired, or is built anew.
            with telling_fenced(conn, self._tables, lease), resuming(conn, self._a_part):
                return self._store(conn, lease, folded)
        except UnappliableError:
            # A table refuses a row. Page by page it turns out which event is to blame.
            return lease

    def _store(self, conn: Connection, lease: Lease, folded: Folded) -> Lease:
        models = read_models_for(self.projection, lease.status)
        allow_long_statements(conn)
        for into, rows in folded.rows.items():
            copy_rows(conn, models[into], rows)
        failpoint("build.rows-copied")
        moved = advance(conn, self._tables, lease, folded.position)
        # The log was looked at when the build began: whether this is all of it, its runner tells.
        note_followed_log(conn, self._tables, self.store, moved, mark=None)
        return moved

    def _fold(
        self, conn: Connection, lease: Lease, projection: type[Projection], target: Position
    ) -> tuple[Lease, Folded]:
        instance = projection()
        models = read_models_for(projection, lease.status)
        folded = Folded({into: {} for into in models})
        while folded.position < target and folded.size <= self.rows_max:
            with resuming(conn, self._a_part):
                page = read_page(
                    conn, self.store, projection, folded.position, self.page_events, until=target
                )
                # Nothing has been moved yet: this keeps the lease, or finds that it is lost.
                lease = advance(conn, self._tables, lease, lease.position)
            try:
                self._apply(instance, models, folded.rows, page.events, lease.segment)
            except Exception:  # noqa: BLE001 -- the application's code may raise anything
                folded.failed = True
                return lease, folded
            folded.position = page.checkpoint
            self.on_read(lease, len(page.events), page.checkpoint)
        return lease, folded

    def _apply(
        self,
        instance: Projection,
        models: ReadModels,
        rows: RowsByTable,
        events: Sequence[RecordedEvent],
        segment: Segment,
    ) -> None:
        steps = plan_steps(instance, decode_each(self.store.types, events), segment)
        new_row = {into: model.new_row for into, model in models.items()}
        fold_steps(instance, steps, rows, new_row=new_row)
        for step in steps:  # what is deleted is not kept
            if rows[step.table].get(step.key, step) is None:
                del rows[step.table][step.key]

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)

    @property
    def _a_part(self) -> str:
        return f"a part of the build of projection {self.projection.name}"
