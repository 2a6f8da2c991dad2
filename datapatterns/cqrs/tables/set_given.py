"""Statements over events that are given instead of read: what tests of a projection need."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Integer,
    Subquery,
    Text,
    Uuid,
    bindparam,
    cast,
    column,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSON, TIMESTAMP

from datapatterns.cqrs.set_definition import SetProjection, StoredShape
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.cqrs.tables.set_applying import run_statements
from datapatterns.cqrs.tables.set_events import GIVEN
from datapatterns.cqrs.tables.set_shapes import ReadShapes, shapes_read
from datapatterns.cqrs.tables.set_statements import statements_over
from datapatterns.errors import ProjectionStoppedError
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore


def apply_given(
    conn: Connection,
    store: EventStore,
    projection: type[SetProjection],
    models: ReadModels,
    events: Sequence[RecordedEvent],
) -> None:
    """Run the statements of ``projection`` over ``events``, whatever the log holds.

    Raises:
        ProjectionDefinitionError: A statement is none that could be run for every version.
        ProjectionStoppedError: No statement can read one of the events.
        UnappliableError: One of the events makes a statement fail.
    """
    shapes = shapes_read(projection.reads, store.types)
    taken = [event for event in events if _is_taken(projection, shapes, event)]
    if taken:
        given = json.dumps([_as_record(event) for event in taken])
        run_statements(conn, statements_over(projection, models, _given_events()), {GIVEN: given})


def _is_taken(projection: type[SetProjection], shapes: ReadShapes, event: RecordedEvent) -> bool:
    if event.event_type not in shapes.names:
        return False
    stored = StoredShape(event.event_type, event.schema_version)
    objection = shapes.objection(stored)
    if objection is not None:
        raise ProjectionStoppedError(
            projection.name, position=event.position, event_type=stored.name, reason=objection
        )
    return shapes.takes(stored)


@cache
def _given_events() -> Subquery:
    records = (
        func.json_to_recordset(cast(bindparam(GIVEN, type_=Text), JSON))
        .table_valued(
            column("position", BigInteger),
            column("tenant", Text),
            column("category", Text),
            column("key", Text),
            column("version", BigInteger),
            column("event_type", Text),
            column("schema_version", Integer),
            column("data", JSON),
            column("metadata", JSON),
            column("recorded_at", TIMESTAMP(timezone=True)),
            column("event_id", Uuid),
            column("tags", ARRAY(Text)),
            name="given",
        )
        .render_derived(with_types=True)
    )
    return select(*records.c).subquery("events")


def _as_record(event: RecordedEvent) -> dict[str, Any]:
    return {
        "position": event.position,
        "tenant": event.stream.tenant,
        "category": event.stream.category,
        "key": event.stream.key,
        "version": event.version,
        "event_type": event.event_type,
        "schema_version": event.schema_version,
        "data": event.data,
        "metadata": event.metadata,
        "recorded_at": event.recorded_at.isoformat(),
        "event_id": str(event.event_id),
        "tags": event.tags,
    }
