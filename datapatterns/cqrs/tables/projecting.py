"""One page of the log into a table, in one transaction with the checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, StatementError

from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.running.advancing import BarrierError, advance, current_barrier
from datapatterns.cqrs.running.bells import ring
from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.running.paging import PageOfEvents, read_page
from datapatterns.cqrs.running.progress import ProjectionProgress, longest_prefix
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.folding import (
    RowsByTable,
    fold_steps,
    keys_by_table,
    plan_steps,
)
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.cqrs.tables.versions import read_models_for
from datapatterns.errors import ProjectionStoppedError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.log.decoding import decode_each
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.transactions import resuming

_MESSAGE_CHARS_MAX = 500

_OF_DATA: Final = (
    "21",  # two keys that only the database finds equal
    "44",  # WITH CHECK OPTION of a view
    "54",  # too long for an index
    "42846",  # a class of value that cannot become the column's
    "P0001",  # refused by a trigger
)
"""Which SQLSTATEs, besides those of the classes 22 and 23, values are to blame for."""


class UnappliableError(Exception):
    """A page holds an event that cannot be applied; its cause says why."""


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

    def page(self, conn: Connection, lease: Lease) -> tuple[Lease, ProjectionProgress]:
        """Apply one page in a transaction of its own.

        Raises:
            CommitUnansweredError: Whether it was applied, the next lease's checkpoint says.
            LeaseLostError: Another runner has the lease; nothing was applied.
            ProjectionStoppedError: An event cannot be applied; those before it were.
        """
        try:
            with resuming(conn, self._a_page):
                lease, progress = self._whole_page(conn, lease)
            stopped = None
        except BarrierError as barred:
            # Set while the page was under way, which is undone.
            return replace(lease, barrier=barred.barrier), ProjectionProgress(
                0, lease.position, caught_up=False
            )
        except UnappliableError:
            # Rolled back. Once more, with savepoints: they cost too much for every page.
            with resuming(conn, self._a_page):
                lease, progress, stopped = self._applicable_part(conn, lease)
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
        return self._whole_page(conn, lease)

    def _whole_page(self, conn: Connection, lease: Lease) -> tuple[Lease, ProjectionProgress]:
        page = self._read(conn, lease)
        if page.events:
            self._apply(conn, lease, page.events)
        if page.checkpoint != lease.position:
            lease = self._advance(conn, lease, page.checkpoint)
        return lease, ProjectionProgress(len(page.events), page.checkpoint, page.caught_up)

    def _applicable_part(
        self, conn: Connection, lease: Lease
    ) -> tuple[Lease, ProjectionProgress, ProjectionStoppedError | None]:
        page = self._read(conn, lease)
        length, error = find_poison(
            conn, page.events, lambda events: self._apply(conn, lease, events)
        )
        self._apply(conn, lease, page.events[:length])
        if error is None:
            lease = self._advance(conn, lease, page.checkpoint)
            done = ProjectionProgress(length, page.checkpoint, page.caught_up)
            return lease, done, None
        poison = page.events[length]
        before = Position(max(lease.position, poison.position - 1))
        record, stopped = describe_stop(self.projection, poison, error)
        lease = self._advance(conn, lease, before, error=record)
        return lease, ProjectionProgress(length, before, caught_up=False), stopped

    def _read(self, conn: Connection, lease: Lease) -> PageOfEvents:
        led_to, mark = self.marks.get(lease.segment, (None, None))
        page = read_page(
            conn,
            self.store,
            self.projection,
            lease.position,
            self.page_events,
            until=current_barrier(conn, projection_tables(self.store.schema), lease),
            mark=mark if led_to == lease.position else None,
        )
        self.marks[lease.segment] = page.checkpoint, page.mark
        return page

    def _apply(self, conn: Connection, lease: Lease, events: Sequence[RecordedEvent]) -> None:
        models = read_models_for(self.projection, lease.status)
        apply_events(conn, self.store, self.projection, models, events, lease.segment)

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


def apply_events(  # noqa: PLR0913 -- what is applied to what
    conn: Connection,
    store: EventStore,
    projection: type[Projection],
    models: ReadModels,
    events: Sequence[RecordedEvent],
    segment: Segment = WHOLE,
    *,
    check_deferred: bool = True,
) -> None:
    """Fold ``events`` into the rows of ``models``: read them at once, write them at once.

    Raises:
        UnappliableError: An event cannot be decoded or folded, or its rows cannot be stored.
    """
    try:
        instance = projection()
        steps = plan_steps(instance, decode_each(store.types, events), segment)
        rows = {
            table: models[table].fetch(conn, keys) for table, keys in keys_by_table(steps).items()
        }
        new_row = {table: model.new_row for table, model in models.items()}
        fold_steps(instance, steps, rows, new_row=new_row)
        write_rows(conn, models, rows, check_deferred=check_deferred)
    except DBAPIError as error:
        # What the data did stops the projection; a lost connection, a deadlock or a missing
        # table is not the event's fault.
        if is_of_data(error):
            raise UnappliableError from error
        raise
    except Exception as error:  # the application's code may raise anything
        raise UnappliableError from error


def write_rows(
    conn: Connection, models: ReadModels, rows: RowsByTable, *, check_deferred: bool = True
) -> None:
    """Store what a fold has left, each table in one statement, and check it at once."""
    written = [(model, rows[table]) for table, model in models.items() if table in rows]
    for model, of_table in reversed(written):  # what refers to others goes before them
        model.delete(conn, of_table)
    for model, of_table in written:
        model.upsert(conn, of_table)
    if written and check_deferred:
        # Now, not at the commit, where nobody would know that it was an event.
        conn.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")


def is_of_data(error: DBAPIError) -> bool:
    """Return whether the values are to blame, rather than the server, the table or the right."""
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is None:  # the driver has refused them, before the server saw any
        return isinstance(error, DataError | ProgrammingError)
    return isinstance(error, DataError | IntegrityError) or sqlstate.startswith(_OF_DATA)


def find_poison(
    conn: Connection,
    events: Sequence[RecordedEvent],
    apply: Callable[[Sequence[RecordedEvent]], None],
) -> tuple[int, Exception | None]:
    """Return how many of ``events`` can be applied, and what the next one raises; apply none."""

    def attempt(length: int) -> Exception | None:
        savepoint = conn.begin_nested()
        try:
            apply(events[:length])
        except UnappliableError as error:
            return error
        finally:
            savepoint.rollback()
        return None

    return longest_prefix(len(events), attempt)


def describe_stop(
    projection: type[AnyProjection], poison: RecordedEvent, failure: Exception
) -> tuple[dict[str, Any], ProjectionStoppedError]:
    """Return what to keep and what to raise when ``poison`` cannot be applied."""
    error = (failure.__cause__ or failure) if isinstance(failure, UnappliableError) else failure
    message = message_of(error)
    stopped = ProjectionStoppedError(
        projection.name,
        position=poison.position,
        event_type=poison.event_type,
        reason=f"{type(error).__name__}: {message}",
    )
    stopped.__cause__ = error
    record = {
        "position": poison.position,
        "event_type": poison.event_type,
        "error": type(error).__name__,
        "message": message,
    }
    return record, stopped


def message_of(error: BaseException | None) -> str:
    """Return what happened in a line that can be stored and shown, without whole rows."""
    if isinstance(error, StatementError):
        # The driver's details and SQLAlchemy's parameters quote whole rows.
        diagnosis = getattr(error.orig, "diag", None)
        return getattr(diagnosis, "message_primary", None) or message_of(error.orig)
    # Nothing that jsonb would refuse: the error must not be lost to another one.
    shortened = str(error)[:_MESSAGE_CHARS_MAX].replace("\0", "\\0")
    return shortened.encode(errors="backslashreplace").decode()
