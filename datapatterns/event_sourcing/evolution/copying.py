"""Copy a stream into a new one through a transformation, page by page, without losing a writer.

How far a copy has come, its target says: each event there names the one that it was made from. So
a copy that broke off is gone on with by whoever runs it next, and nothing is kept beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select

from datapatterns.errors import EventGapError, IsolationLevelError, StreamCopyError
from datapatterns.event_sourcing.content.encoding import APPEND_EVENTS_MAX
from datapatterns.event_sourcing.events import NewEvent, RecordedEvent, StreamId
from datapatterns.event_sourcing.evolution.transforming import Transform, copied_version, copies_of
from datapatterns.event_sourcing.keeping.archiving import Archive
from datapatterns.event_sourcing.log.reading import check_limit
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far a copy has come.

    Attributes:
        source_version: The last event of the source that was looked at.
        target_version: That of the target now.
        read: How many events of the source this call looked at.
        appended: How many it appended to the target.
        caught_up: The source had no more. Until `finish`, it may go on.
        finished: Nothing can have been appended to the source since, in this transaction.
    """

    source_version: int
    target_version: int
    read: int = 0
    appended: int = 0
    caught_up: bool = False
    finished: bool = False


@dataclass(frozen=True, slots=True)
class StreamCopy:
    """Copies one stream into another, which then holds what the transformation makes of it.

    Copy pages, each in a transaction of its own, until one is caught up; meanwhile others may
    append to the source. Then `finish` keeps them out until its transaction ends, and copies what
    has come. Run it again whenever it broke off: nothing is appended twice.

    It copies what a load sees: where a stream begins with a summary, that and what followed.
    Events of the copy are recorded when they are copied; when the original was, and which it was,
    their metadata says under ``copied_from``. The original metadata is kept beside.

    Attributes:
        source: Stays as it is.
        target: Begun by the copy; nobody else appends to it before it is finished.
        transform: A pure function: it returns None, an event, or a list of events.

    Raises:
        ValueError: Source and target are one stream.
    """

    store: EventStore
    source: StreamId
    target: StreamId
    transform: Transform

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise ValueError(f"{self.source} cannot be copied into itself; name a new stream")

    def copy_page(
        self, conn: Connection, after: CopyProgress | None = None, *, limit: int = 500
    ) -> CopyProgress:
        """Copy the next events of the source, at most ``limit``.

        Args:
            conn: A connection in a transaction. The caller commits.
            after: What the call before returned. Without it, events behind the last that left
                something in the target are looked at again.
            limit: The most events of the source; fewer if they become too many for one append.

        Raises:
            EventDataError: What the transformation returned could not be stored and read back.
            EventGapError: The source lacks an event.
            EventTypeError: The class of an event is not declared.
            StreamCopyError: There is no source, or the target holds what this copy did not
                append, or would append otherwise today.
            ValueError: ``limit`` is not positive.
            VersionConflictError: Somebody else has appended to the target in this moment.
        """
        check_limit(limit)
        known = conn.execute(_stream(self.store.schema), _named(self.source)).one_or_none()
        if known is None:
            raise StreamCopyError(str(self.source), str(self.target), "the source has no events")
        begin = self._begin(conn, after, known.first_version)
        events = self.store.read_stream(
            conn, self.source, after_version=begin.source_version, limit=limit
        )
        for version, event in enumerate(events, begin.source_version + 1):
            if event.version != version:
                raise EventGapError(str(self.source), version=version)
        looked_at, copies = self._copies(events)
        target_version, appended = begin.target_version, 0
        if copies:
            answer = self.store.append(conn, self.target, copies, expected_version=target_version)
            target_version = answer.version
            # Another copier of the same may have been faster, and has gone on, maybe.
            appended = 0 if answer.repeated else len(copies)
        failpoint("copy.page-appended")
        return CopyProgress(
            begin.source_version + looked_at,
            target_version,
            looked_at,
            appended,
            caught_up=looked_at == len(events) < limit,
        )

    def finish(
        self,
        conn: Connection,
        after: CopyProgress | None = None,
        *,
        end_source: bool = False,
        limit: int = 500,
    ) -> CopyProgress:
        """Lock the source, copy what is left, and say whether that was all.

        If it was, the transaction can commit a copy that lacks nothing, and from then on name
        the new stream wherever the old one was. If more than ``limit`` events were left, it is
        not finished; commit, and copy pages first.

        Args:
            conn: A connection in a transaction, of a role that may update streams, as the owner
                of the tables may. The caller commits; until then nobody appends to the source.
            after: What the call before returned.
            end_source: Refuse later appends to the source with `StreamArchivedError`, from the
                same moment on.
            limit: The most events that are copied under the lock.

        Raises:
            IsolationLevelError: The connection commits every statement by itself, so that the
                lock would be gone at once.
            StreamCopyError: As from `copy_page`, which may raise its other errors, too.
        """
        driver: Any = conn.connection.driver_connection
        if driver.autocommit:
            raise IsolationLevelError(found="autocommit", needed="read committed")
        # In the order in which every transaction locks several streams.
        locked = {
            stream: conn.execute(_lock(self.store.schema), _named(stream)).one_or_none()
            for stream in sorted((self.source, self.target))
        }
        failpoint("copy.source-locked")
        page = self.copy_page(conn, after, limit=limit)
        source = locked[self.source]
        assert source is not None  # or there was no page
        finished = page.source_version == source.version
        if finished and end_source:
            Archive(self.store).stop(conn, self.source, expected_version=source.version)
        return CopyProgress(
            page.source_version,
            page.target_version,
            page.read,
            page.appended,
            caught_up=finished,
            finished=finished,
        )

    def _begin(
        self, conn: Connection, after: CopyProgress | None, first_version: int
    ) -> CopyProgress:
        last = self.store.read_stream(conn, self.target, limit=1, backwards=True)
        if not last:
            begin = CopyProgress(first_version - 1, 0)
        else:
            begin = CopyProgress(self._continued(conn, last[0]), last[0].version)
        if after is not None and after.target_version == begin.target_version:
            # Events that left nothing in the target need not be looked at again.
            return CopyProgress(
                max(begin.source_version, after.source_version), begin.target_version
            )
        return begin

    def _continued(self, conn: Connection, last: RecordedEvent) -> int:
        """Return which event of the source the last copy was made from, if it still would be."""
        version = copied_version(last, self.source)
        if version is None:
            raise self._refused(f"the target holds {last.event_type}, which is no copy from it")
        while not self._is_continued(conn, version, last):
            # Somebody may have been forgotten between the two reads, and the target shows it now.
            before = last
            [last] = self.store.read_stream(
                conn, self.target, after_version=last.version - 1, limit=1
            )
            if last == before:
                raise self._refused(
                    f"version {last.version} of the target is not what version {version} of the"
                    " source becomes now; the transformation has changed, or somebody was"
                    " forgotten of whom the source no longer tells what the copy was made from"
                )
        return version

    def _is_continued(self, conn: Connection, version: int, last: RecordedEvent) -> bool:
        found = self.store.read_stream(conn, self.source, after_version=version - 1, limit=1)
        copies = self._copied(found[0]) if found and found[0].version == version else []
        return bool(copies) and _is_same(copies[-1], last)

    def _copies(self, events: Sequence[RecordedEvent]) -> tuple[int, list[NewEvent]]:
        """Return how many events were looked at, and what all of them become."""
        copies: list[NewEvent] = []
        for looked_at, event in enumerate(events):
            more = self._copied(event)
            # One that alone becomes too many is refused by the append.
            if copies and len(copies) + len(more) > APPEND_EVENTS_MAX:
                return looked_at, copies
            copies += more
        return len(events), copies

    def _copied(self, event: RecordedEvent) -> list[NewEvent]:
        return copies_of(event, self.transform, self.target, self.store.types)

    def _refused(self, reason: str) -> StreamCopyError:
        return StreamCopyError(
            str(self.source), str(self.target), f"{reason}; copy into a new stream"
        )


def _is_same(copy: NewEvent, stored: RecordedEvent) -> bool:
    return (copy.event_id, copy.event_type, copy.schema_version, copy.data) == (
        stored.event_id,
        stored.event_type,
        stored.schema_version,
        stored.data,
    )


def _named(stream: StreamId) -> dict[str, str]:
    return {"tenant": stream.tenant, "category": stream.category, "key": stream.key}


@cache
def _stream(schema: str) -> Select[Any]:
    streams = event_tables(schema).streams
    return select(streams.c.version, streams.c.first_version).where(
        streams.c.tenant == bindparam("tenant"),
        streams.c.category == bindparam("category"),
        streams.c.key == bindparam("key"),
    )


@cache
def _lock(schema: str) -> Select[Any]:
    # What an append takes, too: so appends wait, and foreign keys do not.
    return _stream(schema).with_for_update(key_share=True)
