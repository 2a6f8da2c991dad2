"""A range of the log into tables by a projection's statements, in the caller's transaction."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from datapatterns.cqrs.running.progress import longest_prefix
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.set_definition import SetProjection
from datapatterns.cqrs.tables.projecting import UnappliableError, is_of_data
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.cqrs.tables.set_events import (
    AFTER,
    END,
    MASK,
    SHARD,
    TYPES,
    places_statement,
)
from datapatterns.cqrs.tables.set_statements import BuiltStatement, statements_for
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.sql.fetching import fetch_rows


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


class Failing(NamedTuple):
    """The event at which statements fail.

    Attributes:
        is_packed: It is no plain JSON, which is why.
    """

    event: PlacedEvent
    error: Exception
    is_packed: bool


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
        events: From a `RangeReader`, or a part of that.

    Raises:
        ProjectionDefinitionError: A statement is none that could be run for every version.
        UnappliableError: An event of the range makes one fail.
    """
    statements = statements_for(projection, models, store.schema, split=events.split)
    if not events.type_ids:
        return
    run_statements(conn, statements, events.parameters)


def run_statements(
    conn: Connection, statements: Iterable[BuiltStatement], parameters: Mapping[str, Any]
) -> None:
    """Run statements, and check at once what would be checked at the COMMIT.

    Raises:
        UnappliableError: One of the events makes one fail.
    """
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
) -> Failing | None:
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
    position, name, codec = rows[length]
    return Failing(PlacedEvent(Position(position), name), error, is_packed=codec > 0)
