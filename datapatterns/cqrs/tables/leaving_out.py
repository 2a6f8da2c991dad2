"""What a read model does not show as it was parked or skipped, so that no replay need have it."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from datapatterns.cqrs.definition import TableProjection
from datapatterns.cqrs.running.parking import WHOLE_EVENT, left_out
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.cqrs.tables.folding import Step
from datapatterns.cqrs.tables.parts import row_digest
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.recorded import RecordedEvent


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a replay leaves out.

    Attributes:
        rows: By digest; their later events wait, so nothing can be said about them.
        parts: Positions of events, and the row that each was left out of.
    """

    projection: type[TableProjection]
    rows: frozenset[bytes] = frozenset()
    parts: frozenset[tuple[Position, bytes]] = frozenset()

    def __bool__(self) -> bool:
        """Return whether there is anything."""
        return bool(self.rows or self.parts)

    def and_also(self, other: "LeftOut") -> "LeftOut":
        """Return what either leaves out."""
        return LeftOut(self.projection, self.rows | other.rows, self.parts | other.parts)

    def events(self, events: Sequence[RecordedEvent]) -> list[RecordedEvent]:
        """Return those that were not left out as a whole."""
        return [one for one in events if (one.position, WHOLE_EVENT) not in self.parts]

    def takes(self, step: Step) -> bool:
        """Return whether the replay is to apply ``step``."""
        digest = row_digest(self.projection, step.table, step.key)
        return digest not in self.rows and (step.meta.position, digest) not in self.parts

    def within(self, steps: Iterable[Step]) -> "LeftOut":
        """Return what is left out of ``steps``, as parts alone."""
        return LeftOut(
            self.projection,
            parts=frozenset(
                (step.meta.position, row_digest(self.projection, step.table, step.key))
                for step in steps
                if not self.takes(step)
            ),
        )

    def hides(self, table: type, key: Hashable) -> bool:
        """Return whether nothing can be said about this row."""
        return row_digest(self.projection, table, key) in self.rows


def read_left_out(
    conn: Connection, tables: ProjectionTables, projection: type[TableProjection]
) -> LeftOut:
    """Return what this version has parked and skipped so far."""
    rows, parts = left_out(conn, tables, projection.name, projection.version)
    return LeftOut(projection, frozenset(rows), frozenset(parts))
