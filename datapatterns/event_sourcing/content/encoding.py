"""Turn what a caller appends into what the database takes, or refuse it before anything is sent."""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, Final
from uuid import UUID

import msgspec

from datapatterns.errors import EventDataError
from datapatterns.event_sourcing.content.likeness import tells_all, unlike_at
from datapatterns.event_sourcing.content.payload import encode_event, encode_mapping, misfit
from datapatterns.event_sourcing.event_ids import new_id, new_ids
from datapatterns.event_sourcing.events import NewEvent, check_tags
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.evolution.evolving import EventType
from datapatterns.event_sourcing.persons.personal import refuse_lookalike

APPEND_EVENTS_MAX: Final = 10_000
"""The most events of one append; import more in chunks."""

APPEND_BYTES_MAX: Final = 67_108_864
"""The most data of one append, as characters of JSON."""


class EncodedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as the database takes it.

    The garbage collector passes it by, as it can be in no cycle: to look through those of a chunk
    cost as much as to encode them.

    Attributes:
        data: JSON; in base64 what a codec made of it, if ``codec`` is not 0.
    """

    name: str
    schema_version: int
    event_id: UUID
    data: str
    meta: str | None
    tags: tuple[str, ...] = ()
    codec: int = 0


class StorableEvents(list[EncodedEvent]):
    """Events in which nothing personal is readable. Only `Contents.outgoing` makes it."""


def encode_batch(
    events: Sequence[object],
    *,
    types: EventTypes,
    metadata: Mapping[str, Any] | None,
    event_ids: Sequence[UUID] | None = None,
) -> list[EncodedEvent]:
    """Return ``events`` as the database takes them, typed ones under ``event_ids`` if given.

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
    meta = encode_mapping(metadata, event_type="metadata") if metadata else None
    if event_ids is None and not isinstance(events[0], NewEvent):
        event_ids = new_ids(len(events))
    encoded = [
        encode(event, types=types, metadata=metadata)
        if isinstance(event, NewEvent)
        else _encode_typed(event, event_id or new_id(), types=types, meta=meta)
        for event, event_id in zip(events, event_ids or repeat(None, len(events)), strict=True)
    ]
    size = sum([len(event.data) + len(event.meta or "") for event in encoded])
    if size > APPEND_BYTES_MAX:
        raise ValueError(
            f"{size} characters of data are too many for one append, {APPEND_BYTES_MAX} is most;"
            " append in batches"
        )
    return encoded


def encode(
    event: object, *, types: EventTypes, metadata: Mapping[str, Any] | None = None
) -> EncodedEvent:
    """Return one event as the database takes it; its own metadata wins over ``metadata``."""
    if not isinstance(event, NewEvent):
        meta = encode_mapping(metadata, event_type="metadata") if metadata else None
        return _encode_typed(event, new_id(), types=types, meta=meta)
    data = encode_mapping(event.data, event_type=event.event_type)
    meta = None
    if metadata or event.metadata:
        both = {**(metadata or {}), **(event.metadata or {})}
        meta = encode_mapping(both, event_type=event.event_type)
    refuse_lookalike(event.event_type, data)
    declared = personal_type(event.event_type, event.schema_version, types)
    if declared is not None:
        _check_fits(declared, data)
    return EncodedEvent(
        event.event_type,
        event.schema_version,
        event.event_id,
        data,
        meta,
        event.tags,
    )


def personal_type(name: str, version: int, types: EventTypes) -> EventType | None:
    """Return the declared type that data of this shape is, if it has personal fields.

    Raises:
        EventDataError: It has some, but nobody knows where they lie.
    """
    declared = types.personal_type(name, version)
    if declared is not None and types.personal_plan(name, version) is None:
        raise EventDataError(
            name,
            "it has personal fields, and where they lie is known of version"
            f" {declared.schema_version} only; give it in that shape",
        )
    return declared


def refuse_readable(events: Sequence[EncodedEvent]) -> None:
    """Refuse to store what may hold readable personal fields: the last door, for all who store.

    Raises:
        RuntimeError: `Contents.outgoing` has not seen these events; pass them through it.
    """
    if not isinstance(events, StorableEvents):
        raise RuntimeError("events were about to be stored that may hold readable personal fields")  # noqa: TRY004 -- a bug of ours


def tags_of(event: object, declared: EventType) -> tuple[str, ...]:
    """Return the tags that its class derives.

    Raises:
        EventDataError: They cannot be stored.
    """
    if declared.tags is None:
        return ()
    tags = declared.tags(event)
    try:
        check_tags(tags)
    except (AttributeError, TypeError, ValueError) as error:  # what is no text, too
        raise EventDataError(declared.name, f"its tags cannot be stored: {error}") from None
    return tuple(tags)


def _encode_typed(
    event: object, event_id: UUID, *, types: EventTypes, meta: str | None
) -> EncodedEvent:
    declared = types.of(type(event))
    # Of a class that was declared anew meanwhile, say.
    personal_type(declared.name, declared.schema_version, types)
    data = encode_event(event, event_type=declared.name)
    # Classes do not check what they are made of. What does not fit would stop every reader, and
    # what comes back otherwise would make another state of a load than of the command.
    _check_same(declared, event, _check_fits(declared, data))
    refuse_lookalike(declared.name, data)
    tags = tags_of(event, declared)
    return EncodedEvent(
        declared.name,
        declared.schema_version,
        event_id,
        data,
        meta,
        tags,
    )


def _check_fits(declared: EventType, data: str) -> object:
    try:
        return declared.decoder.decode(data)
    except msgspec.DecodeError as error:
        raise EventDataError(
            declared.name,
            f"it does not fit its class: {misfit(error)}; give what the fields declare",
        ) from None


def _check_same(declared: EventType, event: object, read: object) -> None:
    try:
        if read == event and tells_all(declared.cls):
            return
    except ArithmeticError:  # of a Decimal that signals
        pass
    where = unlike_at(event, read)
    if where is not None:
        raise EventDataError(
            declared.name,
            f"{where} would come back as something else; give what the fields declare, declare"
            " what JSON can give back, and times in UTC or at an offset, not in a named zone",
        )
