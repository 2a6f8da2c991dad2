"""Import the events of an application of the Python library `eventsourcing`, from PostgreSQL.

It reads the table of that library's application recorder. Snapshots are left behind: they are
copies for speed. Its other databases, and its tables for dynamic consistency boundaries, have other
shapes and are not read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Never

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    LargeBinary,
    Select,
    TableClause,
    Text,
    column,
    func,
    inspect,
    select,
    table,
    tuple_,
)

from datapatterns.errors import ImportChunkError, SourceEventError
from datapatterns.event_sourcing.store import EventStore
from datapatterns.event_sourcing.transfer.eventsourcing_conversion import (
    Conversion,
    ConvertedChunk,
    in_chunks,
)
from datapatterns.event_sourcing.transfer.eventsourcing_mapping import (
    EventsourcingMapping,
    SourceEvent,
)
from datapatterns.event_sourcing.transfer.importing import IMPORT_EVENTS_MAX
from datapatterns.event_sourcing.transfer.importing_parts import ImportedEvent
from datapatterns.event_sourcing.transfer.verifying_imports import check_versions, chunk_sizes
from datapatterns.transactions import resuming

PROBLEMS_MAX: Final = 100
"""How many problems a check names."""

_PAGE: Final = 1_000
_GROWN: Final = (
    "stream by stream, events that are new stand among those that were imported: stop the"
    " application's writers first, and import into an empty store"
)
_COLUMNS: Final = ("originator_id", "originator_version", "topic", "state", "notification_id")


@dataclass(frozen=True, slots=True)
class EventsourcingImported:
    """How far an import has come.

    Attributes:
        read: How many events were read.
        written: How many were written now.
        repeated: How many an earlier attempt had written.
        left_out: How many were left out, by topic, because the mapping says so.
        moved: How many had a time before that of the event before them; they have its.
        gaps: How many versions are missing inside streams.
        streams: How many streams there are.
        types: The names of types, by topic.
        total: How many events there were when it began.
    """

    total: int
    read: int = 0
    written: int = 0
    repeated: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    moved: int = 0
    gaps: int = 0
    streams: int = 0
    types: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EventsourcingChecked:
    """What an import would do.

    Attributes:
        found: As its report.
        problems: What is in its way, at most 100 of them.
    """

    found: EventsourcingImported
    problems: tuple[SourceEventError, ...]


Report = Callable[[EventsourcingImported], object]


@dataclass(frozen=True, slots=True)
class EventsourcingImport:
    """What is imported, and how.

    Attributes:
        store: Where events go.
        table: The table of the application's events: its name in lower case and ``_events``;
            ``stored_events`` if it has none.
        source_schema: Where that table lives.
        mapping: What becomes of topics, originators and states.
        source: The name of what is imported, the same in every attempt; without it, that of the
            table.
        by_stream: Read stream by stream, in little memory, instead of in the order in which
            events were written, which read models may rely on. What has happened since cannot be
            brought like this, so stop the application first.
        close_gaps: Give events lower versions where others are missing before them.
        chunk_events: The most events of a transaction; readers of the log wait for each.

    Raises:
        ValueError: A chunk cannot have so many events.
    """

    store: EventStore
    table: str = "stored_events"
    source_schema: str = "public"
    mapping: EventsourcingMapping = field(default_factory=EventsourcingMapping)
    source: str | None = None
    by_stream: bool = False
    close_gaps: bool = False
    chunk_events: int = 20_000

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_events <= IMPORT_EVENTS_MAX:
            raise ValueError(
                f"a chunk cannot have {self.chunk_events} events; {IMPORT_EVENTS_MAX} is most"
            )

    def run(
        self, source_engine: Engine, engine: Engine, *, report: Report = lambda _: None
    ) -> EventsourcingImported:
        """Import all events, a chunk in each transaction, and compare what has come.

        Run it again if it broke off, or if the application has gone on since: what is there is
        not imported twice. Each stream must then have the version that it has in the source, less
        what was left out. Of each stream, a few hundred bytes stay in memory.

        Args:
            source_engine: Where the application's table is.
            engine: Where the store is.
            report: Is told how far it has come, after each chunk.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; run it again.
            ImportChunkError: Other events were imported before, or by another mapping.
            ImportVersionError: A stream in the store has other events, too.
            SourceEventError: An event cannot be imported, or some appeared behind those that were
                read. Nothing of its chunk was written.
            ValueError: There is no such table, or an event lies in the future.
        """
        self._check_table(source_engine)
        source = self.source or f"eventsourcing {self.source_schema}.{self.table}"
        conversion = self._conversion()
        last, total = self._extent(source_engine)
        done = EventsourcingImported(total)
        with engine.connect() as conn:
            sizes = chunk_sizes(conn, self.store.schema, source)
        rows = self._rows(source_engine, last)
        events = conversion.converted(rows, _refuse)
        chunks = in_chunks(events, sizes, chunk_events=self.chunk_events)
        for number, chunk in enumerate(chunks, 1):
            try:
                with engine.connect() as conn, resuming(conn, f"chunk {number} of {source!r}"):
                    written = self._write(conn, chunk, source=source, number=number)
            except ImportChunkError as error:
                if self.by_stream:
                    error.add_note(_GROWN)
                raise
            repeated = done.repeated + len(chunk.events) - written
            done = _told(conversion, total, done.written + written, repeated)
            report(done)
        self._check_complete(source_engine, last, conversion)
        return _told(conversion, total, done.written, done.repeated)

    def check(self, source_engine: Engine) -> EventsourcingChecked:
        """Read and convert all events as an import does, and tell what is wrong; write nothing.

        Raises:
            ValueError: There is no such table.
        """
        self._check_table(source_engine)
        problems: list[SourceEventError] = []

        def note(problem: SourceEventError) -> None:
            if len(problems) < PROBLEMS_MAX:
                problems.append(problem)

        conversion = self._conversion()
        last, total = self._extent(source_engine)
        would = sum(1 for _ in conversion.converted(self._rows(source_engine, last), note))
        return EventsourcingChecked(_told(conversion, total, would, 0), tuple(problems))

    def _conversion(self) -> Conversion:
        return Conversion(self.mapping, close_gaps=self.close_gaps, by_stream=self.by_stream)

    def _write(self, conn: Connection, chunk: ConvertedChunk, *, source: str, number: int) -> int:
        written = self.store.import_events(
            conn,
            [ImportedEvent(each.stream, each.event, each.recorded_at) for each in chunk.events],
            source=source,
            chunk=number,
        )
        if written:
            check_versions(conn, self.store.schema, chunk.versions)
        return written

    def _check_table(self, engine: Engine) -> None:
        found = inspect(engine)
        name = f"{self.source_schema}.{self.table}"
        if not found.has_table(self.table, schema=self.source_schema):
            raise ValueError(f"there is no table {name}; its name is that of the application")
        columns = {each["name"] for each in found.get_columns(self.table, self.source_schema)}
        if lacking := set(_COLUMNS) - columns:
            raise ValueError(
                f"{name} is no table of eventsourcing's application recorder: it lacks"
                f" {', '.join(sorted(lacking))}"
            )

    def _extent(self, engine: Engine) -> tuple[int, int]:
        """Return the last notification, and how many there are."""
        events = self._events
        with engine.connect() as conn:
            last = conn.scalar(select(func.max(events.c.notification_id))) or 0
            return last, self._count(conn, last)

    def _count(self, conn: Connection, last: int) -> int:
        events = self._events
        counted = select(func.count()).select_from(events).where(events.c.notification_id <= last)
        return conn.scalar(counted) or 0

    def _check_complete(self, engine: Engine, last: int, conversion: Conversion) -> None:
        # Its writers take turns, unless an option of that library lets them not: then rows can
        # appear behind those that were read.
        with engine.connect() as conn:
            missed = self._count(conn, last) - conversion.tally.read
        if missed:
            raise SourceEventError(
                f"{self.source_schema}.{self.table}",
                f"{missed} events appeared behind those that were read; stop its writers, and"
                " import it under another name (source=..., --source) into an empty store",
            )

    def _rows(self, engine: Engine, last: int) -> Iterator[SourceEvent]:
        page: list[SourceEvent] | None = None
        while page is None or len(page) == _PAGE:
            with engine.connect() as conn:
                rows = conn.execute(self._page(last, page[-1] if page else None))
                page = [SourceEvent(*row) for row in rows]
            yield from page

    def _page(self, last: int, after: SourceEvent | None) -> Select[Any]:
        events = self._events
        page = select(*events.c).where(events.c.notification_id <= last).limit(_PAGE)
        if not self.by_stream:
            page = page.order_by(events.c.notification_id)
            return page.where(events.c.notification_id > (after.notification_id if after else 0))
        place = (events.c.originator_id, events.c.originator_version)
        if after is not None:
            page = page.where(
                tuple_(*place) > tuple_(after.originator_id, after.originator_version)
            )
        return page.order_by(*place)

    @property
    def _events(self) -> TableClause:
        return table(
            self.table,
            column("originator_id"),  # uuid or text, as the application was told
            column("originator_version", BigInteger),
            column("topic", Text),
            column("state", LargeBinary),
            column("notification_id", BigInteger),
            schema=self.source_schema,
        )


def _refuse(problem: SourceEventError) -> Never:
    raise problem


def _told(conversion: Conversion, total: int, written: int, repeated: int) -> EventsourcingImported:
    tally = conversion.tally
    return EventsourcingImported(
        total=total,
        read=tally.read,
        written=written,
        repeated=repeated,
        left_out=dict(tally.left_out),
        moved=tally.moved,
        gaps=tally.gaps,
        streams=tally.streams,
        types=dict(tally.types),
    )
