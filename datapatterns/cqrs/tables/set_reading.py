"""What comes next for a projection in SQL: which range of the log, and what stops it."""

from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from sqlalchemy import Connection

from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.set_definition import SetProjection, StoredShape
from datapatterns.cqrs.tables.set_applying import EventRange, PlacedEvent
from datapatterns.cqrs.tables.set_events import (
    LIMIT,
    NAMES,
    TYPES,
    first_statement,
    survey_statement,
    types_statement,
)
from datapatterns.cqrs.tables.set_shapes import shapes_read
from datapatterns.errors import ProjectionDefinitionError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.log.high_water import read_mark
from datapatterns.event_sourcing.log.log_statements import next_statement, size_of
from datapatterns.event_sourcing.log.reading import check_limit
from datapatterns.event_sourcing.store import EventStore
from datapatterns.sql.fetching import fetch_rows

_SCANNED_MIN: Final = 10_000
_SCANNED_PER_EVENT: Final = 20
"""How far to look for a page where events that are read are rare, as readers of the log do."""

_UNCOUNTED_MAX: Final = 15
"""How many pages are taken for as full as the one before, before one is counted again."""

_DENSE: Final = 2
"""At least every so many positions hold an event that is read, or each page is counted."""


class Refused(NamedTuple):
    """The first event that no statement can read, and why."""

    event: PlacedEvent
    reason: str


class SetPage(NamedTuple):
    """What comes next.

    Attributes:
        range: To apply.
        events: How many there are in it; if nobody has counted, how many at most.
        checkpoint: Up to where nothing else is read.
        caught_up: Nothing further is to be read for now.
        refused: What follows the range at once and cannot be applied.
    """

    range: EventRange
    events: int
    checkpoint: Position
    caught_up: bool
    refused: Refused | None = None


@dataclass(slots=True)
class _Known:
    """What stays true for all pages up to a mark.

    It counts for nothing unless the page that was read with it is committed: that made durable
    what was drawn below the mark. Before, a server that crashes may draw the same positions again.

    Attributes:
        led_to: The checkpoint of the latest page that was read with it.
        taken: The ids of the types that are read.
        objections: Of those that no statement can read.
        uncounted: How many pages need not be counted.
    """

    mark: Position
    taken: tuple[int, ...]
    objections: dict[int, str]
    uncounted: int = 0
    led_to: Position | None = None


@dataclass(slots=True)
class RangeReader:
    """Says range by range what comes next; of one thread.

    What it learns with a mark holds for every event up to that, so it asks anew only near it.

    Attributes:
        limit: How many events a range holds at most.
    """

    store: EventStore
    projection: type[SetProjection]
    limit: int
    _known: dict[Segment, _Known] = field(default_factory=dict, repr=False)

    def next_range(
        self,
        conn: Connection,
        after: Position,
        *,
        until: Position | None = None,
        segment: Segment = WHOLE,
        durable: bool = True,
    ) -> SetPage:
        """Return the next events that the projection reads, as a range.

        Args:
            conn: A connection in a transaction, READ COMMITTED.
            after: The checkpoint.
            until: Nothing behind this position.
            segment: Only these streams.
            durable: ``after`` is a checkpoint that is stored.

        Raises:
            CheckpointError: ``after`` lies beyond the log.
            EventTypeError: A class that it reads is not an event.
            IsolationLevelError: The transaction may not see what committed before it asked.
            ProjectionDefinitionError: It is split, but not additive.
            ValueError: The limit is not positive.
        """
        check_limit(self.limit)
        if segment != WHOLE and not self.projection.is_splittable:
            raise ProjectionDefinitionError(
                self.projection.name,
                "it is split into segments, so events of different streams are applied in any"
                " order; if that gives the same rows declare additive=True, else merge the"
                " segments",
            )
        nothing = SetPage(EventRange(after, after, (), segment), 0, after, caught_up=True)
        if until is not None and until <= after:
            return nothing
        known = self._known.get(segment)
        far_ahead = known is not None and known.mark - after > self.limit
        if known is None or not (far_ahead and durable and known.led_to == after):
            known, far_ahead = self._ask(conn, after, known), False
            self._known[segment] = known
        end = known.mark if until is None else min(known.mark, until)
        if end <= after:  # the mark may step back a little; a checkpoint must not
            return nothing
        page = self._page(conn, EventRange(after, end, known.taken, segment), known)
        if page.checkpoint == known.mark and far_ahead:
            page = page._replace(caught_up=False)  # more may have become final since
        page = self._without_refused(conn, page, known)
        known.led_to = page.checkpoint
        return page

    def _ask(self, conn: Connection, after: Position, known: _Known | None) -> _Known:
        schema = self.store.schema
        # Each a statement of its own: the snapshot of one could miss what is final by its end.
        mark = read_mark(conn, schema=schema, after=after)
        shapes = shapes_read(self.projection.reads, self.store.types)
        rows = fetch_rows(conn, types_statement(schema), {NAMES: sorted(shapes.names)})
        stored = {id_: StoredShape(name, version) for id_, name, version in rows}
        objections = {id_: shapes.objection(shape) for id_, shape in stored.items()}
        return _Known(
            mark,
            tuple(sorted(id_ for id_, shape in stored.items() if shapes.takes(shape))),
            {id_: told for id_, told in objections.items() if told is not None},
            known.uncounted if known else 0,
        )

    def _page(self, conn: Connection, whole: EventRange, known: _Known) -> SetPage:
        full = Position(whole.after + self.limit)
        if known.uncounted and full <= whole.end:
            # No more events than positions. To count them costs a tenth of a cheap statement.
            known.uncounted -= 1
            return SetPage(replace(whole, end=full), self.limit, full, full == whole.end)
        reach = whole.after + max(_SCANNED_MIN, _SCANNED_PER_EVENT * self.limit)
        end = Position(min(whole.end, reach))
        asked = {**replace(whole, end=end).parameters, LIMIT: self.limit}
        statement = survey_statement(self.store.schema, split=whole.split)
        ((events, last),) = fetch_rows(conn, statement, asked)
        if events == self.limit:
            end = Position(last)
            known.uncounted = _UNCOUNTED_MAX if end - whole.after < _DENSE * events else 0
        elif not events and end < whole.end:  # purges and setval() leave long gaps
            rest = {"after": end, "end": whole.end}
            statement = next_statement(self.store.schema, size_of(whole.end))
            ahead = fetch_rows(conn, statement, rest)
            end = Position(ahead[0][0] - 1) if ahead else whole.end
        return SetPage(replace(whole, end=end), events, end, caught_up=end >= whole.end)

    def _without_refused(self, conn: Connection, page: SetPage, known: _Known) -> SetPage:
        if not known.objections or page.range.end == page.range.after:
            return page
        asked = {**page.range.parameters, TYPES: [*known.objections]}
        statement = first_statement(self.store.schema, split=page.range.split)
        found = fetch_rows(conn, statement, asked)
        if not found:
            return page
        ((position, name, id_),) = found
        refused = Refused(PlacedEvent(Position(position), name), known.objections[id_])
        before = Position(position - 1)
        part = replace(page.range, end=before)
        events = 0
        if before > part.after:
            asked = {**part.parameters, LIMIT: self.limit}
            statement = survey_statement(self.store.schema, split=part.split)
            ((events, _),) = fetch_rows(conn, statement, asked)
        return SetPage(part, events, before, caught_up=False, refused=refused)
