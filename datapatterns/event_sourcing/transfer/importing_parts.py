"""What a chunk holds of each stream, and by what it is recognised."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.persons.personal import PersonalPlan
from datapatterns.event_sourcing.persons.personal_values import without_personal

_EARLIEST: Final = datetime(1, 1, 3, tzinfo=UTC)
"""In time zones west of Greenwich, what lies before could show as a day before the year 1."""

_DIGESTED_TOGETHER: Final = 500


@dataclass(frozen=True, slots=True)
class ImportedEvent:
    """An event that happened elsewhere, or before.

    Attributes:
        event: A `NewEvent`, or an object of a declared class.
        recorded_at: When it was recorded there; None for the time of the import. Inside a stream
            it must not go back.
    """

    stream: StreamId
    event: object
    recorded_at: datetime | None = None


@dataclass(slots=True)
class StreamPart:
    """What a chunk holds of one stream, and where it goes.

    Attributes:
        name: The stream as digests cover it.
        count: How many events.
        first: The time of the first one; None if the chunk has no times.
        last: That of the last one.
        stream_id: The stream, once it is claimed.
        version: That of the latest event before the next one.
        at: When they are recorded if the chunk has no times, as microseconds of the server.
    """

    stream: StreamId
    name: str
    count: int = 0
    first: datetime | None = None
    last: datetime | None = None
    stream_id: int = 0
    version: int = 0
    at: int = 0


def parts_of_chunk(events: Sequence[ImportedEvent]) -> list[StreamPart]:
    """Return for each event the part that it belongs to; an object for each stream.

    Raises:
        ValueError: Times go back inside a stream, or cannot be stored.
    """
    parts: dict[StreamId, StreamPart] = {}
    # To hash a stream costs more than all the rest, and most chunks use few objects for them.
    known: dict[int, StreamPart] = {}
    of_each = []
    for event in events:
        stream = event.stream
        part = known.get(id(stream))
        if part is None:
            part = parts.get(stream)
            if part is None:
                name = f"{stream.tenant}\0{stream.category}\0{stream.key}\0"
                part = parts[stream] = StreamPart(stream, name)
            known[id(stream)] = part
        part.count += 1
        if event.recorded_at is not None:
            _note_time(part, event.recorded_at)
        of_each.append(part)
    return of_each


def digest_of(
    events: Sequence[ImportedEvent],
    encoded: Sequence[EncodedEvent],
    parts: Sequence[StreamPart],
    plans: Mapping[int, PersonalPlan],
) -> bytes:
    """Return by what a chunk is recognised when it is imported again.

    Args:
        events: The chunk.
        encoded: The same as they were encoded.
        parts: That of each.
        plans: Where personal fields lie, by the place of the event.
    """
    digest = hashlib.sha256()
    texts = _digested(events, encoded, parts, plans)
    while together := "".join(islice(texts, _DIGESTED_TOGETHER)):
        digest.update(together.encode())
    return digest.digest()


def _digested(
    events: Sequence[ImportedEvent],
    encoded: Sequence[EncodedEvent],
    parts: Sequence[StreamPart],
    plans: Mapping[int, PersonalPlan],
) -> Iterator[str]:
    # Without ids: those that were not given are new in every attempt. No part holds U+0000.
    for place, (event, each, part) in enumerate(zip(events, encoded, parts, strict=True)):
        # A digest of personal data would tell who guesses it that the guess is right.
        data = without_personal(each, plans[place]) if place in plans else each.data
        at = event.recorded_at.isoformat() if event.recorded_at else ""
        head = f"{part.name}{each.name}\0{each.schema_version}\0{data}\0{each.meta or ''}\0{at}\0"
        yield head + "\0".join((*each.tags, "")) if each.tags else head


def _note_time(part: StreamPart, recorded_at: datetime) -> None:
    stream = part.stream
    if recorded_at.utcoffset() is None:
        raise ValueError(f"{recorded_at} in {stream} has no time zone; give one")
    if recorded_at < _EARLIEST:
        raise ValueError(
            f"{recorded_at} in {stream} lies so early that not every session could read it; leave"
            " the time out if it is not known"
        )
    if part.last is None:
        part.first = recorded_at
    elif recorded_at < part.last:
        raise ValueError(f"{stream} goes back in time, from {part.last} to {recorded_at}; sort it")
    part.last = recorded_at
