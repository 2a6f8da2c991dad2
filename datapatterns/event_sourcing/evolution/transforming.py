"""What a stream's events become in a copy of it: their ids, their origin, their content."""

from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID, uuid5

from datapatterns.event_sourcing.content.encoding import EncodedEvent, encode
from datapatterns.event_sourcing.content.payload import decode_stored
from datapatterns.event_sourcing.events import NewEvent, RecordedEvent, StreamId
from datapatterns.event_sourcing.evolution.event_types import EventTypes

COPIED_FROM: Final = "copied_from"
"""The key of metadata that says which event a copy was made from."""

Transform = Callable[[RecordedEvent], object]
"""Returns what an event becomes: None, an event, or a list of events.

An event is a `NewEvent` or an object of a declared class. It must be a pure function: a copy that
broke off calls it again, and expects the same.
"""


def unchanged(recorded: RecordedEvent) -> NewEvent:
    """Return the event as it is stored, in the shape that it has there.

    >>> copy = StreamCopy(store, source, target, unchanged)  # doctest: +SKIP
    """
    return NewEvent(recorded.event_type, recorded.data, recorded.schema_version, tags=recorded.tags)


def copies_of(
    recorded: RecordedEvent, transform: Transform, target: StreamId, types: EventTypes
) -> list[NewEvent]:
    """Return the events that are appended to ``target`` for one of the source.

    Their ids follow from the source's, so a second attempt is recognised.

    Raises:
        EventDataError: What ``transform`` returned could not be stored and read back.
        EventTypeError: The class of an event is not declared.
    """
    became = transform(recorded)
    if became is None:
        return []
    events = became if isinstance(became, list | tuple) else [became]
    origin = {**(recorded.metadata or {}), COPIED_FROM: origin_of(recorded)}
    copies = []
    for index, event in enumerate(events):
        encoded = encode(event, types=types)
        own = _read(encoded, encoded.meta) if encoded.meta else {}
        copies.append(
            NewEvent(
                encoded.name,
                # As it will be read: what is compared with a stored event has its form.
                _read(encoded, encoded.data),
                encoded.schema_version,
                copied_id(recorded.event_id, target, index),
                {**origin, **own, COPIED_FROM: origin[COPIED_FROM]},
                encoded.tags,
            )
        )
    return copies


def copied_id(event_id: UUID, target: StreamId, index: int) -> UUID:
    """Return the id of the copy of an event, the same whenever it is made."""
    # No part holds U+0000.
    return uuid5(event_id, "\0".join([target.tenant, target.category, target.key, str(index)]))


def origin_of(recorded: RecordedEvent) -> dict[str, Any]:
    """Return what a copy says about the event that it was made from."""
    stream = recorded.stream
    return {
        "tenant": stream.tenant,
        "category": stream.category,
        "key": stream.key,
        "version": recorded.version,
        "event_id": str(recorded.event_id),
        "recorded_at": recorded.recorded_at.isoformat(),
    }


def copied_version(copied: RecordedEvent, source: StreamId) -> int | None:
    """Return which version of ``source`` this was copied from; None if it was not."""
    origin = (copied.metadata or {}).get(COPIED_FROM)
    if not isinstance(origin, Mapping):
        return None
    named = tuple(origin.get(part) for part in ("tenant", "category", "key"))
    version = origin.get("version")
    is_ours = named == (source.tenant, source.category, source.key)
    return version if is_ours and isinstance(version, int) else None


def _read(encoded: EncodedEvent, text: str) -> dict[str, Any]:
    read: dict[str, Any] = decode_stored(
        text, event_type=encoded.name, schema_version=encoded.schema_version
    )
    return read
