"""Encode the events of a chunk together: what is certain of all need not be asked of each.

Whatever is not certain is encoded one by one, as for an append, and refused there.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from datapatterns.event_sourcing.content.encoding import (
    EncodedEvent,
    encode,
    personal_type,
    tags_of,
)
from datapatterns.event_sourcing.content.likeness import tells_all, unlike_at
from datapatterns.event_sourcing.content.payload import encode_events, encode_mappings
from datapatterns.event_sourcing.event_ids import new_ids
from datapatterns.event_sourcing.events import NewEvent
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.persons.personal import has_sealed

_TOGETHER: Final = 256
"""How many are encoded one by one if one of them needs a closer look."""


def encode_chunk(events: Sequence[object], types: EventTypes) -> list[EncodedEvent]:
    """Return ``events`` as `encode` does, in their order.

    Raises:
        EventDataError: An event could not be stored and read back.
        EventTypeError: The class of an event is not declared.
    """
    kinds = set(map(type, events))
    if len(kinds) == 1:
        return _of_one_kind(kinds.pop(), events, types)
    places: dict[type, list[int]] = {kind: [] for kind in kinds}
    for place, event in enumerate(events):
        places[type(event)].append(place)
    encoded: list[Any] = [None] * len(events)
    for kind, of_kind in places.items():
        made = _of_one_kind(kind, [events[place] for place in of_kind], types)
        for place, event in zip(of_kind, made, strict=True):
            encoded[place] = event
    return encoded


def _of_one_kind(kind: type, events: Sequence[Any], types: EventTypes) -> list[EncodedEvent]:
    if issubclass(kind, EncodedEvent):  # from a file that holds what was stored
        return list(events)
    together = _new_events if issubclass(kind, NewEvent) else _typed_events
    encoded: list[EncodedEvent] = []
    for first in range(0, len(events), _TOGETHER):
        some = events[first : first + _TOGETHER]
        encoded += together(some, types) or [encode(event, types=types) for event in some]
    return encoded


def _new_events(events: Sequence[NewEvent], types: EventTypes) -> list[EncodedEvent] | None:
    shapes = {(event.event_type, event.schema_version) for event in events}
    if any(types.personal_type(*shape) for shape in shapes):
        return None
    data = encode_mappings([event.data for event in events])
    if data is None or has_sealed("".join(data)):
        return None
    given = [event.metadata for event in events if event.metadata]
    metas: Sequence[str | None] | None = [None] * len(events)
    if given:
        metas = encode_mappings(given) if len(given) == len(events) else None
    if metas is None:
        return None
    return [
        EncodedEvent(e.event_type, e.schema_version, e.event_id, text, meta, e.tags)
        for e, text, meta in zip(events, data, metas, strict=True)
    ]


def _typed_events(events: Sequence[object], types: EventTypes) -> list[EncodedEvent] | None:
    declared = types.of(type(events[0]))
    name, version = declared.name, declared.schema_version
    personal_type(name, version, types)
    decoder = declared.decoder
    if not isinstance(decoder, msgspec.json.Decoder):  # a model's
        return None
    data = encode_events(events, declared.cls)
    if data is None or has_sealed("".join(data)) or not _come_back(events, decoder, data):
        return None
    tags = [tags_of(event, declared) for event in events] if declared.tags else [()] * len(events)
    return [
        EncodedEvent(name, version, event_id, text, None, of_event)
        for text, event_id, of_event in zip(data, new_ids(len(events)), tags, strict=True)
    ]


def _come_back(
    events: Sequence[object], decoder: msgspec.json.Decoder[Any], data: Sequence[str]
) -> bool:
    # Classes do not check what they are made of.
    try:
        read = decoder.decode_lines("\n".join(data))
        if read != list(events):
            return False
    except (msgspec.DecodeError, ArithmeticError):
        return False
    cls: Any = type(events[0])
    if tells_all(cls):
        return True
    return all(unlike_at(event, copy) is None for event, copy in zip(events, read, strict=True))
