"""The event store: what it promises, and where that is done."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from datapatterns.event_sourcing.appending import append_events, encode_batch
from datapatterns.event_sourcing.event_types import EVENT_TYPES, EventTypes
from datapatterns.event_sourcing.events import (
    START,
    Appended,
    Blocker,
    Expected,
    LogPage,
    Position,
    RecordedEvent,
    StreamId,
)
from datapatterns.event_sourcing.high_water import list_blockers, read_high_water_mark
from datapatterns.event_sourcing.reading import read_log, read_stream
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema


@dataclass(frozen=True, slots=True)
class EventStore:
    """Appends and reads events in the caller's transaction; it never commits.

    Attributes:
        schema: Where the library's tables live.
        types: The types of events that can be decoded and given as objects.

    Raises:
        SchemaNameError: The library's tables cannot live in a schema of that name.
    """

    schema: str = DEFAULT_SCHEMA
    types: EventTypes = field(default=EVENT_TYPES, repr=False)

    def __post_init__(self) -> None:
        checked_schema(self.schema)

    def append(
        self,
        conn: Connection,
        stream: StreamId,
        events: Sequence[object],
        *,
        expected_version: int | Expected,
        metadata: Mapping[str, Any] | None = None,
    ) -> Appended:
        """Append ``events`` to ``stream`` in one round trip.

        Until the transaction ends, readers of the log wait in front of it; so append last. To
        several streams, append in the order of their `StreamId`, or two transactions may
        deadlock.

        A repeated append with the same event ids and an expected version is recognised, so an
        append whose COMMIT was not answered can be tried again.

        Args:
            conn: A connection in a transaction. The caller commits.
            stream: The stream to extend or to begin.
            events: What happened, oldest first; `NewEvent` objects, or objects of declared
                classes. These get a new id each time, so a retry of them is not recognised.
            expected_version: The version that the decision was based on, `NEW_STREAM`,
                `EXISTS` or `ANY`.
            metadata: Added to each event; its own metadata wins.

        Raises:
            EventDataError: An event could not be stored and read back. Nothing was sent.
            EventTypeError: The class of an event is not declared.
            ValueError: There are no events, or too many for one append.
            VersionConflictError: The stream is not as expected. Nothing was written, no
                position was drawn, and the transaction is still usable. Under REPEATABLE READ
                and SERIALIZABLE a writer that committed since the transaction began raises
                SQLSTATE 40001 instead, as any write does there.
        """
        return append_events(
            conn,
            stream,
            encode_batch(events, types=self.types, metadata=metadata),
            schema=self.schema,
            expected_version=expected_version,
        )

    def read_stream(
        self,
        conn: Connection,
        stream: StreamId,
        *,
        after_version: int = 0,
        limit: int = 500,
        backwards: bool = False,
    ) -> list[RecordedEvent]:
        """Return at most ``limit`` events of one stream that follow ``after_version``.

        Events that the caller's own transaction has appended are among them. Oldest first; with
        ``backwards``, the newest first.

        Raises:
            ValueError: ``limit`` is not positive.
        """
        return read_stream(
            conn,
            stream,
            schema=self.schema,
            after_version=after_version,
            limit=limit,
            backwards=backwards,
        )

    def read_log(
        self,
        conn: Connection,
        after: Position = START,
        *,
        limit: int = 500,
        event_types: Collection[str] | None = None,
    ) -> LogPage:
        """Return at most ``limit`` final events of all streams that follow ``after``.

        Go on from the page's ``checkpoint``: no event will appear at or before it any more. A
        page may be empty although the log goes on, when none of the events it passed is one of
        ``event_types``; ``caught_up`` tells the difference.

        Raises:
            CheckpointError: ``after`` lies beyond the log.
            IsolationLevelError: The transaction is not READ COMMITTED, so it may not see what
                committed before the mark was read.
            ValueError: ``limit`` is not positive.
        """
        return read_log(conn, after, schema=self.schema, limit=limit, event_types=event_types)

    def high_water_mark(self, conn: Connection) -> Position:
        """Return the position at or below which no event can appear any more.

        Rows up to it show to *later* statements. Between two calls the mark may step back a
        little, when a writer was slow to raise its fence: what lay below stays final.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
        """
        return read_high_water_mark(conn, schema=self.schema)

    def blockers(self, conn: Connection) -> list[Blocker]:
        """Return the open transactions that hold the mark back, the longest open first."""
        return list_blockers(conn, schema=self.schema)

    def decode(self, recorded: RecordedEvent) -> list[object]:
        """Return what ``recorded`` says today: no, one or several typed events.

        Raises:
            EventShapeError: The data does not fit its class, or no upcaster leads to it.
            EventTypeError: The type is not declared.
        """
        return self.types.decode(recorded.event_type, recorded.schema_version, recorded.data)
