"""A replay of a projection in SQL: its statements again, into temporary tables."""

from dataclasses import dataclass, replace

from sqlalchemy import Connection

from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.set_definition import SetProjection
from datapatterns.cqrs.tables.projecting import UnappliableError
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.cqrs.tables.set_applying import apply_range, find_failing
from datapatterns.cqrs.tables.set_projecting import describe_failure, describe_refusal
from datapatterns.cqrs.tables.set_reading import RangeReader, SetPage
from datapatterns.event_sourcing.events import START, Position


@dataclass(slots=True)
class SetReplay:
    """Temporary tables that hold the read model as of ``position``; of one connection.

    As `Replay`, which folds in Python.
    """

    reader: RangeReader
    models: ReadModels
    position: Position = START
    segment: Segment = WHOLE

    @property
    def projection(self) -> type[SetProjection]:
        """Whose statements."""
        return self.reader.projection

    def of_segment(self, segment: Segment) -> "SetReplay":
        """Return a replay into the same tables that goes on from here with some streams only."""
        return replace(self, segment=segment)

    def pages(self, conn: Connection, *, until: Position) -> None:
        """Apply all that follows up to ``until`` in the caller's transaction.

        Raises:
            UnappliableError: An event cannot be applied; `diagnose` says which.
        """
        while self.position < until:
            self.page(conn, until=until)

    def page(self, conn: Connection, *, until: Position | None = None) -> ProjectionProgress:
        """Apply the next range in the caller's transaction, up to ``until`` if that is given.

        Raises:
            UnappliableError: An event cannot be applied; `diagnose` says which.
        """
        page = self._survey(conn, until)
        if page.refused is not None:
            raise UnappliableError
        apply_range(conn, self.reader.store, self.projection, self.models, page.range)
        self.position = page.checkpoint
        return ProjectionProgress(page.events, page.checkpoint, page.caught_up)

    def diagnose(self, conn: Connection) -> Exception | None:
        """Return the error that names the event at which `page` fails."""
        page = self._survey(conn, None)
        failing = find_failing(conn, self.reader.store, self.projection, self.models, page.range)
        if failing is not None:
            return describe_failure(self.projection, failing)[1]
        return None if page.refused is None else describe_refusal(self.projection, page.refused)[1]

    def _survey(self, conn: Connection, until: Position | None) -> SetPage:
        return self.reader.next_range(conn, self.position, until=until, segment=self.segment)
