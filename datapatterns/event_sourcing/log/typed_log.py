"""Read the log as objects of the classes that are declared, without what else an event has."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection

from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.log.filtering import EVERYTHING, LogFilter
from datapatterns.event_sourcing.log.log_statements import BOUND, TYPED
from datapatterns.event_sourcing.log.reading import (
    Names,
    Question,
    read_contents,
    read_names,
    read_page_rows,
)
from datapatterns.event_sourcing.recorded import TypedEvent, TypedPage
from datapatterns.event_sourcing.store import EventStore
from datapatterns.sql.fetching import Rows


@dataclass(frozen=True, slots=True)
class TypedLog:
    """Reads what `EventStore.read_log` reads, several times as fast, for who wants events alone."""

    store: EventStore

    def read(
        self,
        conn: Connection,
        after: Position | TypedPage = START,
        *,
        limit: int = 500,
        matching: LogFilter = EVERYTHING,
        published: bool = False,
    ) -> TypedPage:
        """Return the typed events of at most ``limit`` stored events that follow ``after``.

        Given the page before instead of its checkpoint, it asks for the high-water mark only when
        that page has reached it.

        Events that upcasters drop are left out; of one that becomes several, all have its position.

        Raises:
            EventShapeError: Data does not fit its class, or no upcaster leads to it.
            EventTypeError: A type is not declared; ask for the types that are.
            CheckpointError: As `EventStore.read_log`.
            IsolationLevelError: As `EventStore.read_log`.
            MarkUnpublishedError: As `EventStore.read_log`.
            ValueError: ``limit`` is not positive.
        """
        asked = Question(after, limit, matching, published)
        store, schema = self.store, self.store.schema
        columns = TYPED if store.contents.is_plain else BOUND
        rows, checkpoint, mark = read_page_rows(conn, asked, schema=schema, columns=columns)
        if not rows:
            return TypedPage([], checkpoint, mark)
        names = read_names(conn, rows, schema)
        stored = read_contents(conn, rows, names, store.contents)
        return TypedPage(_typed(rows, names, stored, store.types), checkpoint, mark)


def _typed(
    rows: Rows, names: Names, contents: Sequence[bytes], types: EventTypes
) -> list[TypedEvent]:
    streams = names.streams
    readers = {id_: types.reader(*of) for id_, of in names.types.items()}
    direct = {
        id_: None if reader.decoder is None else reader.decoder.decode
        for id_, reader in readers.items()
    }
    events: list[TypedEvent] = []
    add = events.append
    for row, json in zip(rows, contents, strict=True):
        decode = direct[row[3]]
        if decode is not None:
            try:
                add(TypedEvent(row[0], streams[row[1]], row[2], decode(json)))
            except (msgspec.DecodeError, RecursionError):
                pass  # the other way says what is wrong
            else:
                continue
        for event in readers[row[3]].from_json(json):
            add(TypedEvent(row[0], streams[row[1]], row[2], event))
    return events
