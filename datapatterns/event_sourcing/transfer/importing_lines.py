"""Import a file of JSON lines in chunks; what broke off is simply imported again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, Final

from sqlalchemy import Connection, Engine

from datapatterns.errors import EventLineError
from datapatterns.event_sourcing.store import EventStore
from datapatterns.event_sourcing.transfer.importing import IMPORT_EVENTS_MAX
from datapatterns.event_sourcing.transfer.importing_parts import ImportedEvent
from datapatterns.event_sourcing.transfer.json_lines import encoded
from datapatterns.event_sourcing.transfer.line_chunks import Chunk, LineChunks, Note, refuse
from datapatterns.event_sourcing.transfer.verifying_imports import check_versions, chunk_sizes
from datapatterns.transactions import resuming

CHUNK_EVENTS: Final = 20_000

PROBLEMS_MAX: Final = 100
"""How many bad lines a check names."""


@dataclass(frozen=True, slots=True)
class LinesImported:
    """How far an import has come.

    Attributes:
        events: How many events were written now.
        repeated: How many an earlier attempt had written.
        lines: How many lines were read.
    """

    events: int = 0
    repeated: int = 0
    lines: int = 0


Report = Callable[[LinesImported], object]


@dataclass(frozen=True, slots=True)
class LinesChecked:
    """What a file of lines holds.

    Attributes:
        events: How many lines are events that could be stored.
        lines: How many lines were read.
        problems: What is wrong, at most 100 of them.
    """

    events: int
    lines: int
    problems: tuple[EventLineError, ...]


@dataclass(frozen=True, slots=True)
class LinesImport:
    """Where lines go, and how.

    Attributes:
        store: Where events go.
        source: The name of what is imported, the same in every attempt; without it, the one that
            the header of an export has.
        keep_versions: Refuse events that would get another version than they had.
        chunk_events: The most events of a transaction; readers of the log wait for each. What was
            imported before keeps the chunks that it had.

    Raises:
        ValueError: A chunk cannot have so many events.
    """

    store: EventStore
    source: str | None = None
    keep_versions: bool = True
    chunk_events: int = CHUNK_EVENTS

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_events <= IMPORT_EVENTS_MAX:
            raise ValueError(
                f"a chunk cannot have {self.chunk_events} events; {IMPORT_EVENTS_MAX} is most"
            )

    def run(
        self, engine: Engine, file: IO[bytes], *, report: Report = lambda _: None
    ) -> LinesImported:
        """Import the lines of ``file``, a chunk in each transaction; return how many events came.

        Ids, times, versions, tags, metadata and the bytes of the data are those of the file;
        positions are new. Run it again if it broke off: chunks that are there are skipped.

        Args:
            engine: Where the store is.
            file: Open for reading; it is read once, line by line.
            report: Is told how far it has come, after each chunk.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; run it again.
            EventLineError: A line is no event, or lines are missing. Nothing of its chunk was
                written.
            ImportChunkError: The source was imported before, with other events or other chunks.
            ImportVersionError: Events would get other versions; nothing of their chunk was
                written.
            ValueError: There is no name for the source, or times go back or lie in the future.
        """
        chunks = self._chunks(file, refuse)
        export_id = chunks.header.export_id
        source = self.source or (export_id and f"export {export_id}")
        if not source:
            raise ValueError("the file's header has no export_id; name the source (--source)")
        with engine.connect() as conn:
            chunks.sizes = chunk_sizes(conn, self.store.schema, source)
        done = LinesImported(lines=1)
        for number, chunk in enumerate(chunks, 1):
            with engine.connect() as conn, resuming(conn, f"chunk {number} of {source!r}"):
                written = self._write(conn, chunk, source=source, number=number)
            repeated = len(chunk.events) - written
            done = LinesImported(done.events + written, done.repeated + repeated, chunks.lines)
            report(done)
        return replace(done, lines=chunks.lines)

    def check(self, file: IO[bytes]) -> LinesChecked:
        """Read all lines of ``file`` as an import does, and tell what is wrong; write nothing.

        Whether times and versions fit what the store holds shows only when it is imported.

        Raises:
            EventLineError: The first line is no header.
        """
        problems: list[EventLineError] = []

        def note(problem: EventLineError) -> None:
            if len(problems) < PROBLEMS_MAX:
                problems.append(problem)

        chunks = self._chunks(file, note)
        events = sum(len(chunk.events) for chunk in chunks)
        return LinesChecked(events, chunks.lines, tuple(problems))

    def _chunks(self, file: IO[bytes], note: Note) -> LineChunks:
        return LineChunks(
            file, keep_versions=self.keep_versions, chunk_events=self.chunk_events, note=note
        )

    def _write(self, conn: Connection, chunk: Chunk, *, source: str, number: int) -> int:
        written = self.store.import_events(
            conn,
            [ImportedEvent(each.stream, encoded(each), each.recorded_at) for each in chunk.events],
            source=source,
            chunk=number,
        )
        if written and self.keep_versions:
            check_versions(conn, self.store.schema, chunk.versions)
        return written
