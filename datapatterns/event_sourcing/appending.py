"""Append events to a stream, unless another writer got there first."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import BigInteger, Connection, Integer, Text, Uuid, bindparam, column, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from datapatterns.errors import EventDataError, VersionConflictError
from datapatterns.event_sourcing.event_types import EventTypes
from datapatterns.event_sourcing.events import (
    VERSION_MAX,
    Appended,
    Expected,
    NewEvent,
    Position,
    StreamId,
)
from datapatterns.event_sourcing.payload import encode_event, encode_mapping, misfit
from datapatterns.event_sourcing.schema import event_tables

APPEND_EVENTS_MAX: Final = 10_000
"""The most events of one append; import more in chunks."""

APPEND_BYTES_MAX: Final = 67_108_864
"""The most data of one append, as characters of JSON."""

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own
_EXPECTED: Final = {Expected.ANY: None, Expected.EXISTS: -1}


class EncodedEvent(NamedTuple):
    """An event as the database takes it."""

    name: str
    schema_version: int
    event_id: UUID
    data: str
    meta: str | None


def append_events(
    conn: Connection,
    stream: StreamId,
    encoded: Sequence[EncodedEvent],
    *,
    schema: str,
    expected_version: int | Expected,
    position: Position | None = None,
) -> Appended:
    """Do what `EventStore.append` promises.

    ``position`` is that of the event with the expected version, if the caller knows it: then an
    event that has taken its place is a conflict, too.
    """
    expected = _expected(expected_version)
    names, schema_versions, event_ids, data, meta = zip(*encoded, strict=True)
    # By the driver's own statement: Core's execute costs as much again as the round trip.
    outcome, version, position = conn.exec_driver_sql(
        _append_statement(schema),
        {
            "tenant": stream.tenant,
            "category": stream.category,
            "key": stream.key,
            "expected": expected,
            "names": list(names),
            "schema_versions": list(schema_versions),
            "event_ids": list(event_ids),
            "data": list(data),
            "meta": list(meta),
            "position": position,
        },
    ).one()
    if outcome == "conflict":
        wanted = (
            expected_version.value if isinstance(expected_version, Expected) else expected_version
        )
        raise VersionConflictError(str(stream), expected=wanted, found=version)
    return Appended(version, Position(position), repeated=outcome == "repeated")


def encode_batch(
    events: Sequence[object], *, types: EventTypes, metadata: Mapping[str, Any] | None
) -> list[EncodedEvent]:
    """Return ``events`` as the database takes them.

    Raises:
        EventDataError: An event could not be stored and read back.
        EventTypeError: The class of an event is not declared.
        ValueError: There are no events, or too many for one append.
    """
    if not events:
        raise ValueError("there is nothing to append; give at least one event")
    if len(events) > APPEND_EVENTS_MAX:
        raise ValueError(
            f"{len(events)} events are too many for one append, {APPEND_EVENTS_MAX} is most;"
            " append in batches, or use import_events"
        )
    encoded = [encode(event, types=types, metadata=metadata) for event in events]
    size = sum(len(event.data) + len(event.meta or "") for event in encoded)
    if size > APPEND_BYTES_MAX:
        raise ValueError(
            f"{size} characters of data are too many for one append, {APPEND_BYTES_MAX} is most;"
            " append in batches"
        )
    return encoded


def identified(
    encoded: Sequence[EncodedEvent], event_ids: Sequence[UUID] | None
) -> Sequence[EncodedEvent]:
    """Return the events under these ids, or as they are if None are given.

    Raises:
        ValueError: There are fewer or more ids than events, or one comes twice.
    """
    if event_ids is None:
        return encoded
    if len(event_ids) != len(encoded) or len(set(event_ids)) != len(event_ids):
        raise ValueError(
            f"{len(encoded)} events need as many different ids, not {len(event_ids)}; give one each"
        )
    return [
        event._replace(event_id=event_id)
        for event, event_id in zip(encoded, event_ids, strict=True)
    ]


def encode(
    event: object, *, types: EventTypes, metadata: Mapping[str, Any] | None = None
) -> EncodedEvent:
    """Return one event as the database takes it; its own metadata wins over ``metadata``."""
    if not isinstance(event, NewEvent):
        declared = types.of(type(event))
        data = encode_event(event, event_type=declared.name)
        # Classes do not check what they are made of. What does not fit would stop every reader.
        try:
            declared.decoder.decode(data)
        except msgspec.ValidationError as error:
            raise EventDataError(
                declared.name,
                f"it does not fit its class: {misfit(error)}; give what the fields declare",
            ) from None
        meta = encode_mapping(metadata, event_type=declared.name) if metadata else None
        return EncodedEvent(declared.name, declared.schema_version, uuid4(), data, meta)
    data = encode_mapping(event.data, event_type=event.event_type)
    both = {**(metadata or {}), **(event.metadata or {})}
    meta = encode_mapping(both, event_type=event.event_type) if both else None
    return EncodedEvent(event.event_type, event.schema_version, event.event_id, data, meta)


def _expected(expected_version: int | Expected) -> int | None:
    if isinstance(expected_version, Expected):
        return _EXPECTED[expected_version]
    if not 0 <= expected_version <= VERSION_MAX:
        raise ValueError(
            f"that is no version, it is {'below 0' if expected_version < 0 else 'too large'};"
            " expect what the last event says, 0 for a new stream, ANY or EXISTS"
        )
    return expected_version


@cache
def _append_statement(schema: str) -> str:
    function = event_tables(schema).function(
        "append_events",
        bindparam("tenant", type_=Text),
        bindparam("category", type_=Text),
        bindparam("key", type_=Text),
        bindparam("expected", type_=BigInteger),
        bindparam("names", type_=ARRAY(Text)),
        bindparam("schema_versions", type_=ARRAY(Integer)),
        bindparam("event_ids", type_=ARRAY(Uuid)),
        bindparam("data", type_=ARRAY(Text)),
        bindparam("meta", type_=ARRAY(Text)),
        bindparam("position", type_=BigInteger),
    )
    row = (
        column("outcome", Text),
        column("stream_version", BigInteger),
        column("last_position", BigInteger),
    )
    statement = select(*row).select_from(function.table_valued(*row))
    return str(statement.compile(dialect=_DIALECT))
