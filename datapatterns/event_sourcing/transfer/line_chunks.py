"""Cut a file of lines into the chunks that an import writes.

The lines alone decide where a chunk ends, so that chunks are the same in every attempt. A
checkpoint ends one, so that they stay the same when an export has been continued.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Final

from datapatterns.errors import EventLineError
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.transfer.json_lines import (
    LINE_BYTES_MAX,
    Checkpoint,
    StoredEvent,
    read_header,
    read_line,
)

CHUNK_BYTES: Final = 64 * 1_048_576
"""A chunk is held in memory: it ends after the line that reaches this size."""

Note = Callable[[EventLineError], object]


@dataclass(slots=True)
class Chunk:
    """Events that are written in one transaction.

    Attributes:
        versions: The last version of each stream, if the file tells it.
    """

    events: list[StoredEvent] = field(default_factory=list)
    versions: dict[StreamId, int | None] = field(default_factory=dict)
    size: int = 0


def refuse(problem: EventLineError) -> None:
    """Let the first problem end the reading."""
    raise problem


class LineChunks:
    """Reads a file of lines once, in constant memory.

    Args:
        file: Open for reading.
        keep_versions: Take it for a problem that versions of a stream do not follow each other.
        chunk_events: How many events fill a chunk.
        note: Is given what is wrong with a line; if it returns, the line is left out.

    Raises:
        EventLineError: The first line is no header.
    """

    def __init__(
        self, file: IO[bytes], *, keep_versions: bool, chunk_events: int, note: Note = refuse
    ) -> None:
        self.header = read_header(file.readline(LINE_BYTES_MAX))
        self.lines = 1
        self._file = file
        self._keep_versions = keep_versions
        self._chunk_events = chunk_events
        self._note = note
        self.sizes: Mapping[int, int] = {}
        """How many events chunks have that were cut before, by their numbers."""
        self._number = 1
        self._above = 0  # lines of events so far, bad ones among them

    def __iter__(self) -> Iterator[Chunk]:
        chunk = Chunk()
        # Who writes lines by hand need not say where they end.
        is_ended = may_end = self.header.export_id is None
        while line := self._file.readline(LINE_BYTES_MAX):
            self.lines += 1
            is_checkpoint = self._take(line, chunk)
            is_ended = is_checkpoint or may_end
            if chunk.events and (is_checkpoint or self._is_full(chunk)):
                yield chunk
                chunk = Chunk()
                self._number += 1
        if not is_ended:
            advice = "it is the last, but no checkpoint: the export broke off, so continue it"
            self._note(EventLineError(self.lines, advice))
        if chunk.events:
            yield chunk

    def _is_full(self, chunk: Chunk) -> bool:
        if self._number in self.sizes:
            return len(chunk.events) >= self.sizes[self._number]
        return len(chunk.events) >= self._chunk_events or chunk.size >= CHUNK_BYTES

    def _take(self, line: bytes, chunk: Chunk) -> bool:
        """Add what is in ``line``; return whether it is a checkpoint."""
        try:
            found = read_line(line, self.lines)
            if isinstance(found, Checkpoint):
                self._check_count(found)
                return True
            self._check_order(found, chunk)
            self._check_time(found, chunk)
        except EventLineError as problem:
            self._above += 1
            self._note(problem)
            return False
        self._above += 1
        chunk.events.append(found)
        chunk.versions[found.stream] = found.version
        chunk.size += len(line)
        return False

    def _check_count(self, checkpoint: Checkpoint) -> None:
        if checkpoint.events != self._above:
            reason = (
                f"there are {self._above} events above it, and it says {checkpoint.events}:"
                " lines are missing or were added"
            )
            self._note(EventLineError(self.lines, reason))

    def _check_time(self, event: StoredEvent, chunk: Chunk) -> None:
        if chunk.events and (event.recorded_at is None) != (chunk.events[0].recorded_at is None):
            raise EventLineError(
                self.lines, "of it and those before it, some have a time; give all one, or none"
            )

    def _check_order(self, event: StoredEvent, chunk: Chunk) -> None:
        before = chunk.versions.get(event.stream)
        if not self._keep_versions or before is None or event.version in (None, before + 1):
            return
        raise EventLineError(
            self.lines,
            f"version {event.version} of {event.stream} follows version {before}: events are"
            " missing or out of order; export the streams whole, or give up the versions"
            " (keep_versions=False, --renumber)",
        )
