"""The event store: what it promises, and where that is done."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload
from uuid import UUID

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from datapatterns.event_sourcing.appending.appending import append_events, append_to_streams
from datapatterns.event_sourcing.appending.batching import (
    StreamEvents,
    guard,
    guard_of_all,
    outgoing,
    stream_batch,
    stream_batches,
)
from datapatterns.event_sourcing.appending.keeping_inline import AppendedByStream, append_keeping
from datapatterns.event_sourcing.appending.reading_tagged import read_tagged
from datapatterns.event_sourcing.appending.tag_query import (
    Condition,
    Tagged,
    TaggedPage,
    TagQuery,
    tag_query,
)
from datapatterns.event_sourcing.appending.unit import Unit
from datapatterns.event_sourcing.appending.unit_places import unit_in_block, unit_of_session
from datapatterns.event_sourcing.command_store import CommandStore
from datapatterns.event_sourcing.events import (
    START,
    Appended,
    Blocker,
    Expected,
    Position,
    StreamId,
)
from datapatterns.event_sourcing.log.blocking import list_blockers
from datapatterns.event_sourcing.log.filtering import LogFilter, log_filter
from datapatterns.event_sourcing.log.high_water import read_mark
from datapatterns.event_sourcing.log.reading import Question, read_log, read_stream
from datapatterns.event_sourcing.recorded import LogPage, RecordedEvent
from datapatterns.event_sourcing.transfer.importing import import_events
from datapatterns.event_sourcing.transfer.importing_parts import ImportedEvent

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


@dataclass(frozen=True, slots=True)
class EventStore(CommandStore):
    """Appends and reads events in the caller's transaction; it never commits.

    Attributes:
        schema: Where the library's tables live.
        types: The types of events that can be decoded and given as objects.
        clock: Measures how long loads take, for snapshot policies.
        codecs: What is stored in place of plain JSON. SQL over the data needs plain JSON.
        keys: Of the persons whom personal fields are about; None if no event has such fields.
        inline: Read models that are kept in the transaction of each append, see
            `datapatterns.cqrs.InlineProjections`.

    Raises:
        SchemaNameError: The library's tables cannot live in a schema of that name.
    """

    def append(  # noqa: PLR0913 -- what may be said about one append
        self,
        conn: Connection,
        stream: StreamId,
        events: Sequence[object],
        *,
        expected_version: int | Expected,
        metadata: Mapping[str, Any] | None = None,
        event_ids: Sequence[UUID] | None = None,
        unless: Condition | None = None,
    ) -> Appended:
        """Append ``events`` to ``stream`` in one round trip.

        Until the transaction ends, readers of the log wait in front of it; so append last. To
        several streams, use `append_to_streams`, or two transactions may deadlock.

        A repeated append with the same event ids and an expected version is recognised, so an
        append whose COMMIT was not answered can be tried again. `ANY` and `EXISTS` need
        ``event_ids`` for that.

        Args:
            conn: A connection in a transaction. The caller commits.
            stream: The stream to extend or to begin.
            events: What happened, oldest first; `NewEvent` objects, or objects of declared
                classes. These get a new id each time unless ``event_ids`` are given, so a retry
                of them is not recognised.
            expected_version: The version that the decision was based on, `NEW_STREAM`,
                `EXISTS` or `ANY`.
            metadata: Added to each event; its own metadata wins.
            event_ids: One for each event, in the same order, in place of its own.
            unless: Append only if no event matches this, from `read_tagged`.

        Raises:
            ConditionConflictError: An event that the decision did not know of matches
                ``unless``. Nothing was written, and the transaction is still usable.
            EventDataError: An event could not be stored and read back. Nothing was sent.
            EventIdsReusedError: The ids were given before, to other events.
            EventTypeError: The class of an event is not declared.
            IsolationLevelError: With ``unless`` the transaction must be READ COMMITTED.
            StreamArchivedError: Nothing can be appended to the stream any more.
            ValueError: There are no events, too many for one append, or not as many ids.
            VersionConflictError: The stream is not as expected. Nothing was written, no
                position was drawn, and the transaction is still usable. Under REPEATABLE READ
                and SERIALIZABLE a writer that committed since the transaction began raises
                SQLSTATE 40001 instead, as any write does there.
        """
        wanted = StreamEvents(stream, events, expected_version, metadata, event_ids)
        batch = stream_batch(wanted, types=self.types)
        condition = guard(unless, stream, types=self.types)

        def append() -> AppendedByStream:
            sent = outgoing(conn, batch, self.contents)
            return {stream: append_events(conn, sent, schema=self.schema, guard=condition)}

        return append_keeping(self, conn, [batch], append)[stream]

    def append_to_streams(
        self,
        conn: Connection,
        wanted: Sequence[StreamEvents],
        *,
        unless: Condition | None = None,
    ) -> dict[StreamId, Appended]:
        """Append to several streams or to none, in one round trip; return what each did.

        Streams are locked in one order, whatever that of ``wanted``, so that no two such
        transactions wait for each other. Otherwise as `append`, and the error names the stream.

        Args:
            conn: A connection in a transaction. The caller commits.
            wanted: What to append, each stream once.
            unless: Append only if no event matches this. It is about all of them, so they belong
                to its tenant; what the same call appends does not count.

        Raises:
            ValueError: There is nothing to append, too much, a stream comes twice, or one belongs
                to another tenant than the condition.
        """
        batches = stream_batches(wanted, types=self.types)
        condition = guard_of_all(unless, [one.stream for one in wanted], types=self.types)

        def append() -> AppendedByStream:
            sent = [outgoing(conn, batch, self.contents) for batch in batches]
            return append_to_streams(conn, sent, schema=self.schema, guard=condition)

        return append_keeping(self, conn, batches, append)

    @overload
    def unit(self, place: Connection) -> AbstractContextManager[Unit]: ...

    @overload
    def unit(self, place: "Session | AsyncSession", *, bind: Engine | None = None) -> Unit: ...

    def unit(
        self, place: "Connection | Session | AsyncSession", *, bind: Engine | None = None
    ) -> Unit | AbstractContextManager[Unit]:
        """Return a unit of work, which collects appends and makes them last, in one round trip.

        Of a session it is the one unit: it appends just before the COMMIT, after the session's own
        flush, each time the session commits. On a connection it is a ``with`` block: it appends at
        the end of the block, and the caller commits.

        Args:
            place: Whose transaction.
            bind: Which engine has the events, of a session with several.
        """
        if isinstance(place, Connection):
            return unit_in_block(place, self)
        session: Any = place  # to ask whether it is an AsyncSession would need the async extra
        return unit_of_session(getattr(session, "sync_session", session), self, bind)

    def import_events(
        self, conn: Connection, events: Sequence[ImportedEvent], *, source: str, chunk: int
    ) -> int:
        """Write a chunk of events by COPY; return how many, 0 if it was imported before.

        Positions, and the versions of each stream, follow the order of ``events``; streams are
        begun or extended. Readers of the log wait while the chunk is being written: about 20,000
        events are a good size.

        Args:
            conn: A connection in a transaction. The caller commits.
            events: The chunk.
            source: The name of what is imported.
            chunk: The number of the chunk in the source, the same in every attempt.

        Raises:
            EventDataError: An event could not be stored and read back.
            EventTypeError: The class of an event is not declared.
            ImportChunkError: The chunk was imported before, with other events.
            IsolationLevelError: The connection commits every statement by itself.
            ValueError: The chunk is empty or too large, or times go back, lie in the future, or
                are given for some events only. Roll the transaction back.
        """
        return import_events(
            conn,
            events,
            source=source,
            chunk=chunk,
            schema=self.schema,
            types=self.types,
            contents=self.contents,
        )

    def read_stream(
        self,
        conn: Connection,
        stream: StreamId,
        *,
        after_version: int = 0,
        to_version: int | None = None,
        limit: int = 500,
        backwards: bool = False,
    ) -> list[RecordedEvent]:
        """Return at most ``limit`` events of one stream after ``after_version``, to ``to_version``.

        Archived events and those of the caller's own transaction are among them. Oldest first;
        with ``backwards``, the newest first.

        Raises:
            ValueError: ``limit`` is not positive.
        """
        return read_stream(
            conn,
            stream,
            schema=self.schema,
            contents=self.contents,
            after_version=after_version,
            to_version=to_version,
            limit=limit,
            backwards=backwards,
        )

    def read_tagged(
        self,
        conn: Connection,
        query: Tagged | TagQuery,
        *,
        tenant: str = "",
        after: Position = START,
        limit: int = 1_000,
        exclusively: bool = False,
    ) -> TaggedPage:
        """Return at most ``limit`` events that match ``query``, oldest first.

        Decide from all of them, and append ``unless=page.condition``: it fails if an event that
        matches has been appended since. Go on from the page's ``checkpoint``, also next time.

        Args:
            conn: A connection in a transaction.
            query: What the decision is about.
            tenant: Whose events.
            after: The checkpoint of the page before.
            limit: The most events of a page.
            exclusively: First wait for all who append what matches, and keep others from it until
                the transaction ends; then no condition is needed. Call it first in the
                transaction, for all that is to be decided there.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
            ValueError: ``limit`` is not positive, or the tenant cannot be one.
        """
        return read_tagged(
            conn,
            tag_query(query),
            tenant=tenant,
            after=after,
            limit=limit,
            exclusively=exclusively,
            schema=self.schema,
            types=self.types,
            contents=self.contents,
        )

    def read_log(
        self,
        conn: Connection,
        after: Position | LogPage = START,
        *,
        limit: int = 500,
        event_types: Collection[str] | None = None,
        matching: LogFilter | None = None,
        published: bool = False,
    ) -> LogPage:
        """Return at most ``limit`` final events of all streams that follow ``after``.

        Go on from the page's ``checkpoint``: no event will appear at or before it any more. A
        page may be empty although it is not ``caught_up``, when no event it passed is wanted.

        Args:
            conn: A connection in a transaction.
            after: The checkpoint of the page before; or that page, which saves asking for the mark.
            limit: At most.
            event_types: Only these; short for a filter with nothing else.
            matching: Which events to return.
            published: Up to the mark that `publish_mark` stored; for any isolation and standbys.

        Raises:
            CheckpointError: ``after`` lies beyond the log.
            IsolationLevelError: The transaction is not READ COMMITTED, so it may not see what
                committed before the mark was read.
            MarkUnpublishedError: There is no published mark.
            ValueError: ``limit`` is not positive, or types are given twice.
        """
        asked = Question(after, limit, log_filter(matching, event_types), published)
        return read_log(conn, asked, schema=self.schema, contents=self.contents)

    def high_water_mark(self, conn: Connection, *, published: bool = False) -> Position:
        """Return the position at or below which no event can appear any more.

        Rows up to it show to *later* statements. Between two calls the mark may step back a
        little, when a writer was slow to raise its fence: what lay below stays final. The
        ``published`` one never steps back.

        Raises:
            CheckpointError: The published mark lies beyond the log: a part was restored.
            IsolationLevelError: The transaction is not READ COMMITTED.
            MarkUnpublishedError: There is no published mark.
        """
        return read_mark(conn, schema=self.schema, after=START, published=published)

    def blockers(self, conn: Connection) -> list[Blocker]:
        """Return the open transactions that hold the mark back, the longest open first."""
        return list_blockers(conn, schema=self.schema)

    def decode(self, recorded: RecordedEvent) -> list[object]:
        """Return what ``recorded`` says today: no, one or several typed events.

        Raises:
            EventShapeError: The data does not fit its class, or no upcaster leads to it.
            EventTypeError: The type is not declared.
        """
        kind = recorded.event_type, recorded.schema_version
        if recorded.stored is None:
            return self.types.decode(*kind, recorded.data)
        return self.types.decode_json(*kind, recorded.stored)
