"""A replay of a projection in SQL: its statements again, into temporary tables."""

from dataclasses import dataclass, replace

from sqlalchemy import Connection

from datapatterns.cqrs.running.parking import WHOLE_EVENT
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.set_definition import SetProjection
from datapatterns.cqrs.tables.kept_poison import KeptPoison
from datapatterns.cqrs.tables.leaving_out import LeftOut
from datapatterns.cqrs.tables.poison import Dealt
from datapatterns.cqrs.tables.projecting import UnappliableError
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.cqrs.tables.set_applying import EventRange, Failing, apply_range, find_failing
from datapatterns.cqrs.tables.set_projecting import (
    describe_failure,
    describe_refusal,
    describe_skipped,
)
from datapatterns.cqrs.tables.set_reading import RangeReader, SetPage
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.store import EventStore


@dataclass(slots=True)
class SetReplay:
    """Temporary tables that hold the read model as of ``position``; of one connection.

    As `Replay`, which folds in Python.

    Attributes:
        left_out: What the read model does not show and this need not either.
        kept: Where to keep what cannot be applied; unless given, that raises.
    """

    reader: RangeReader
    models: ReadModels
    position: Position = START
    segment: Segment = WHOLE
    left_out: LeftOut | None = None
    kept: KeptPoison | None = None

    @property
    def store(self) -> EventStore:
        """Where the events are."""
        return self.reader.store

    @property
    def projection(self) -> type[SetProjection]:
        """Whose statements."""
        return self.reader.projection

    def page(self, conn: Connection, *, until: Position | None = None) -> ProjectionProgress:
        """Apply the next range in the caller's transaction, up to ``until`` if that is given.

        Raises:
            UnappliableError: An event cannot be applied; `diagnose` says which.
        """
        page = self._survey(conn, until)
        if page.refused is not None:
            raise UnappliableError
        self._apply(conn, page.range)
        self.position = page.checkpoint
        return ProjectionProgress(page.events, page.checkpoint, page.caught_up)

    def page_in_parts(
        self, conn: Connection, kept: KeptPoison, *, until: Position | None = None
    ) -> ProjectionProgress:
        """Apply the next range up to an event that cannot be applied, which goes to ``kept``.

        Raises:
            ProjectionStoppedError: No statement can read the event.
        """
        page = self._survey(conn, until)
        failing = self._find_failing(conn, page)
        if failing is None or failing.is_packed:
            stopped = self._stopped(page, failing)
            if stopped is not None:
                raise stopped
            return self.page(conn, until=until)
        poison = failing.event.position
        before = self._survey(conn, Position(poison - 1))
        self._apply(conn, before.range)
        skipped = [describe_skipped(failing)]
        dealt = Dealt(before.events + 1, poison, caught_up=False, skipped=skipped)
        kept.add(dealt)
        self.position = poison
        return ProjectionProgress(dealt.events, poison, dealt.caught_up)

    def diagnose(self, conn: Connection) -> Exception | None:
        """Return the error that names the event at which `page` fails."""
        page = self._survey(conn, None)
        return self._stopped(page, self._find_failing(conn, page))

    def _stopped(self, page: SetPage, failing: Failing | None) -> Exception | None:
        if failing is not None:
            return describe_failure(self.projection, failing)[1]
        return None if page.refused is None else describe_refusal(self.projection, page.refused)[1]

    def _find_failing(self, conn: Connection, page: SetPage) -> Failing | None:
        return find_failing(conn, self.store, self.projection, self.models, page.range)

    def _apply(self, conn: Connection, events: EventRange) -> None:
        for skipped in sorted(self._skipped_in(events)):
            before = replace(events, end=Position(skipped - 1))
            apply_range(conn, self.store, self.projection, self.models, before)
            events = replace(events, after=skipped)
        apply_range(conn, self.store, self.projection, self.models, events)

    def _skipped_in(self, events: EventRange) -> list[Position]:
        if self.left_out is None:
            return []
        skipped = [position for position, row in self.left_out.parts if row == WHOLE_EVENT]
        return [position for position in skipped if events.after < position <= events.end]

    def _survey(self, conn: Connection, until: Position | None) -> SetPage:
        return self.reader.next_range(conn, self.position, until=until, segment=self.segment)
