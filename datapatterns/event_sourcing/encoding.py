"""Turn what a caller appends into what the database takes, or refuse it before anything is sent."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

import msgspec

from datapatterns.errors import EventDataError
from datapatterns.event_sourcing.event_types import EventTypes
from datapatterns.event_sourcing.events import NewEvent
from datapatterns.event_sourcing.payload import encode_event, encode_mapping, misfit

APPEND_EVENTS_MAX: Final = 10_000
"""The most events of one append; import more in chunks."""

APPEND_BYTES_MAX: Final = 67_108_864
"""The most data of one append, as characters of JSON."""


class EncodedEvent(NamedTuple):
    """An event as the database takes it.

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
    return EncodedEvent(
        event.event_type, event.schema_version, event.event_id, data, meta, event.tags
    )
