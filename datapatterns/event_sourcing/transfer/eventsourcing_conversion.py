"""Turn the rows of `eventsourcing`, one after the other, into events of our streams.

What has to be remembered of each stream is a few hundred bytes; of streams that are read one
after the other, only one is remembered.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from datapatterns.errors import SourceEventError
from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.transfer.eventsourcing_mapping import (
    EventsourcingMapping,
    SourceEvent,
)

CHUNK_CHARACTERS: Final = 64 * 1_048_576
"""A chunk is held in memory: it ends after the event that reaches this size."""

Note = Callable[[SourceEventError], object]


class Converted(NamedTuple):
    """A row as an event of ours."""

    stream: StreamId
    version: int
    event: EncodedEvent
    recorded_at: datetime


@dataclass(slots=True)
class Tally:
    """What was met.

    Attributes:
        left_out: How many events were left out, by topic, because the mapping says so.
        moved: How many had an earlier time than the event before them; they have its.
        gaps: How many versions were missing.
        types: The names of types, by topic.
    """

    read: int = 0
    streams: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    gaps: int = 0
    types: dict[str, str] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Stream:
    stream: StreamId
    source_version: int = 0
    version: int = 0
    last_at: datetime | None = None


@dataclass(slots=True)
class Conversion:
    """Converts rows in the order in which they were written.

    Attributes:
        mapping: What becomes of topics, originators and states.
        close_gaps: Go on behind a version that is missing.
        by_stream: Rows come stream by stream.
    """

    mapping: EventsourcingMapping
    close_gaps: bool = False
    by_stream: bool = False
    tally: Tally = field(default_factory=Tally)
    _streams: dict[UUID | str, _Stream] = field(default_factory=dict)

    def converted(self, rows: Iterable[SourceEvent], note: Note) -> Iterator[Converted]:
        """Yield an event for each row that is not left out; ``note`` may raise, or go on."""
        for row in rows:
            self.tally.read += 1
            try:
                found = self._convert(row)
            except SourceEventError as problem:
                note(problem)
                continue
            if found is not None:
                yield found

    def _convert(self, row: SourceEvent) -> Converted | None:
        name = self._name(row)
        known = self._streams.get(row.originator_id)
        if known is not None and name is None:
            self._check_version(row, known)
            return None
        state = self.mapping.state(row)
        if known is None:
            known = self._begin(row, self.mapping.stream(row, state.aggregate))
        self._check_version(row, known)
        if name is None:
            return None
        event = self.mapping.encoded(row, name, state)
        at = state.recorded_at
        if known.last_at is not None and at < known.last_at:
            at = known.last_at  # two machines' clocks differ; inside a stream time cannot go back
            self.tally.moved += 1
        known.last_at = at
        known.version += 1
        self.tally.events[str(row.topic)] += 1
        return Converted(known.stream, known.version, event, at)

    def _name(self, row: SourceEvent) -> str | None:
        name = self.mapping.event_type(row)
        topic = str(row.topic)
        if name is None:
            self.tally.left_out[topic] += 1
            return None
        if topic not in self.tally.types:
            self._check_distinct(row, topic, name)
            self.tally.types[topic] = name
        return name

    def _check_distinct(self, row: SourceEvent, topic: str, name: str) -> None:
        other = next((known for known, as_ in self.tally.types.items() if as_ == name), None)
        if other is not None and not {topic, other} <= self.mapping.types.keys():
            raise SourceEventError(
                str(row), f"it would have the type {name}, as {other} has; name both in types"
            )

    def _begin(self, row: SourceEvent, stream: StreamId) -> _Stream:
        if self.by_stream:
            self._streams.clear()
        self.tally.streams += 1
        known = self._streams[row.originator_id] = _Stream(stream)
        return known

    def _check_version(self, row: SourceEvent, known: _Stream) -> None:
        expected, found = known.source_version + 1, row.originator_version
        if found < expected:
            raise SourceEventError(
                str(row), f"it comes after event {expected - 1}; read stream by stream"
            )
        missing = found - expected
        known.source_version = found
        if not missing:
            return
        self.tally.gaps += missing
        if not self.close_gaps:
            raise SourceEventError(
                str(row),
                f"events {expected} to {found - 1} before it are missing; close the gap to give"
                " it, and those behind it, lower versions (close_gaps=True, --close-gaps)",
            )


@dataclass(slots=True)
class ConvertedChunk:
    """Events that are written in one transaction.

    Attributes:
        versions: The last version of each stream.
        size: As characters of data.
    """

    events: list[Converted] = field(default_factory=list)
    versions: dict[StreamId, int | None] = field(default_factory=dict)
    size: int = 0

    def add(self, event: Converted) -> None:
        """Take ``event`` as the last one."""
        self.events.append(event)
        self.versions[event.stream] = event.version
        self.size += len(event.event.data)


def in_chunks(
    events: Iterable[Converted], sizes: Mapping[int, int], *, chunk_events: int
) -> Iterator[ConvertedChunk]:
    """Cut ``events`` into chunks; those with a number in ``sizes`` have that size again."""
    number, chunk = 1, ConvertedChunk()
    for event in events:
        chunk.add(event)
        size = sizes.get(number)
        is_full = len(chunk.events) >= (size or chunk_events)
        if is_full or (size is None and chunk.size >= CHUNK_CHARACTERS):
            yield chunk
            number, chunk = number + 1, ConvertedChunk()
    if chunk.events:
        yield chunk
