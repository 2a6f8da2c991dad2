"""A range of the log into tables by a projection's statements, in the caller's transaction.

For runners, replays and builds: `survey` says what comes next, `apply_range` applies it to whatever
tables are given.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from datapatterns.cqrs.running.progress import longest_prefix
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.set_definition import SetProjection, StoredShape
from datapatterns.cqrs.tables.projecting import UnappliableError, is_of_data
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.cqrs.tables.set_events import (
    AFTER,
    END,
    LIMIT,
    MASK,
    NAMES,
    SHARD,
    TYPES,
    places_statement,
    survey_statement,
)
from datapatterns.cqrs.tables.set_shapes import ReadShapes, shapes_read
from datapatterns.cqrs.tables.set_statements import statements_for
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


@dataclass(frozen=True, slots=True)
class EventRange:
    """The events of these types and of one segment whose positions are in (after, end]."""

    after: Position
    end: Position
    type_ids: tuple[int, ...]
    segment: Segment = WHOLE

    @property
    def parameters(self) -> dict[str, Any]:
        """As statements take it."""
        return {
            AFTER: self.after,
            END: self.end,
            TYPES: [*self.type_ids],
            MASK: self.segment.mask,
            SHARD: self.segment.shard,
        }

    @property
    def split(self) -> bool:
        """Whether it is a part only of the events at these positions."""
        return self.segment != WHOLE


class PlacedEvent(NamedTuple):
    """Where an event is, and what it is called."""

    position: Position
    event_type: str


class Refused(NamedTuple):
    """The first event that no statement can read, and why."""

    event: PlacedEvent
    reason: str


class SetPage(NamedTuple):
    """What comes next.

    Attributes:
        range: To apply.
        events: How many there are in it.
        checkpoint: Up to where nothing else is read.
        caught_up: Nothing further is to be read for now.
        refused: What follows the range at once and cannot be applied.
    """

    range: EventRange
    events: int
    checkpoint: Position
    caught_up: bool
    refused: Refused | None = None


def survey(  # noqa: PLR0913 -- a question of many parts
    conn: Connection,
    store: EventStore,
    projection: type[SetProjection],
    after: Position,
    limit: int,
    *,
    until: Position | None = None,
    segment: Segment = WHOLE,
) -> SetPage:
    """Return the next at most ``limit`` events that ``projection`` reads, as a range.

    Args:
        conn: A connection in a transaction, READ COMMITTED.
        store: Where the events are.
        projection: What it reads.
        after: The checkpoint.
        limit: At most so many events.
        until: Nothing behind this position.
        segment: Only these streams.

    Raises:
        CheckpointError: ``after`` lies beyond the log.
        EventTypeError: A class that it reads is not an event.
        IsolationLevelError: The transaction may not see what committed before it asked.
        ProjectionDefinitionError: It is split, but not additive.
        ValueError: ``limit`` is not positive.
    """
    check_limit(limit)
    if segment != WHOLE and not projection.is_splittable:
        raise ProjectionDefinitionError(
            projection.name,
            "it is split into segments, so events of different streams are applied in any order;"
            " if that gives the same rows declare additive=True, else merge the segments",
        )
    nothing = EventRange(after, after, (), segment)
    if until is not None and until <= after:
        return SetPage(nothing, 0, after, caught_up=True)
    # A statement before those that look: the snapshot of one could miss what is final by its end.
    mark = read_mark(conn, schema=store.schema, after=after)
    end = mark if until is None else min(mark, until)
    if end <= after:  # the mark may step back a little; a checkpoint must not
        return SetPage(nothing, 0, after, caught_up=True)
    return _surveyed(conn, store, projection, replace(nothing, end=end), limit)


def _surveyed(
    conn: Connection,
    store: EventStore,
    projection: type[SetProjection],
    whole: EventRange,
    limit: int,
) -> SetPage:
    shapes = shapes_read(projection.reads, store.types)
    reach = whole.after + max(_SCANNED_MIN, _SCANNED_PER_EVENT * limit)
    end = Position(min(whole.end, reach))
    asked = {
        **replace(whole, end=end).parameters,
        NAMES: sorted(shapes.names),
        LIMIT: limit,
    }
    rows = fetch_rows(conn, survey_statement(store.schema, split=whole.split), asked)
    found = [_Found(StoredShape(name, version), *rest) for name, version, *rest in rows]
    if not found and end < whole.end:  # purges and setval() leave long gaps
        rest = {"after": end, "end": whole.end}
        ahead = fetch_rows(conn, next_statement(store.schema, size_of(whole.end)), rest)
        end = Position(ahead[0][0] - 1) if ahead else whole.end
    elif sum(one.events for one in found) == limit:
        end = max(one.last for one in found)
    refused = _first_refused(found, shapes)
    if refused is not None:
        before = Position(refused.event.position - 1)
        if before <= whole.after:
            return SetPage(replace(whole, end=whole.after), 0, whole.after, False, refused)
        page = _surveyed(conn, store, projection, replace(whole, end=before), limit)
        return page._replace(caught_up=False, refused=refused)
    taken = [one for one in found if shapes.takes(one.shape)]
    ids = tuple(sorted(one.type_id for one in taken))
    events = sum(one.events for one in taken)
    this = replace(whole, end=end, type_ids=ids)
    return SetPage(this, events, end, caught_up=end >= whole.end)


def apply_range(
    conn: Connection,
    store: EventStore,
    projection: type[SetProjection],
    models: ReadModels,
    events: EventRange,
) -> None:
    """Run the statements of ``projection`` over ``events``, writing the tables of ``models``.

    Args:
        conn: A connection in a transaction, READ COMMITTED.
        store: Where the events are.
        projection: Whose statements.
        models: The live tables, their shadows, or those of a replay.
        events: From `survey`, or a part of that.

    Raises:
        ProjectionDefinitionError: A statement is none that could be run for every version.
        UnappliableError: An event of the range makes one fail.
    """
    statements = statements_for(projection, models, store.schema, split=events.split)
    if not events.type_ids:
        return
    parameters = events.parameters
    try:
        for built in statements:
            conn.execute(
                built.statement, {name: parameters[name] for name in built.parameters}
            ).close()
        # Now, not at the commit, where nobody would know that it was an event.
        conn.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    except DBAPIError as error:
        # What the data did stops the projection; a lost connection, a deadlock or a missing
        # table is not the event's fault.
        if is_of_data(error):
            raise UnappliableError from error
        raise


def find_failing(
    conn: Connection,
    store: EventStore,
    projection: type[SetProjection],
    models: ReadModels,
    events: EventRange,
) -> tuple[PlacedEvent, Exception] | None:
    """Return the first event at which the statements fail, and how; change nothing."""
    rows = fetch_rows(conn, places_statement(store.schema, split=events.split), events.parameters)

    def attempt(length: int) -> Exception | None:
        part = replace(events, end=Position(rows[length - 1][0]) if length else events.after)
        savepoint = conn.begin_nested()
        try:
            apply_range(conn, store, projection, models, part)
        except UnappliableError as error:
            return error
        finally:
            savepoint.rollback()
        return None

    if not rows:
        return None
    length, error = longest_prefix(len(rows), attempt)
    if error is None:
        return None
    position, name = rows[length]
    return PlacedEvent(Position(position), name), error


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is of one stored shape on a page."""

    shape: StoredShape
    type_id: int
    events: int
    first: Position
    last: Position
    first_coded: Position | None


def _first_refused(found: Iterable[_Found], shapes: ReadShapes) -> Refused | None:
    refused = []
    for one in found:
        objection = shapes.objection(one.shape)
        if objection is not None:
            refused.append(Refused(PlacedEvent(one.first, one.shape.name), objection))
        elif one.first_coded is not None and shapes.takes(one.shape):
            coded = PlacedEvent(one.first_coded, one.shape.name)
            refused.append(Refused(coded, _CODED))
    return min(refused, key=lambda one: one.event.position, default=None)


_CODED: Final = (
    "a codec has packed, compressed or encrypted its data, which SQL does not read; fold it in"
    " Python by a Projection"
)
