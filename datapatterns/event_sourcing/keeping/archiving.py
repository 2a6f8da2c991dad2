"""Move events that are rarely needed out of the way, and back; begin a stream at a summary.

An event is in ``event`` or in ``event_archive``, never in both: one statement deletes it here and
inserts it there, and triggers refuse everything else. So whoever reads ``event_all`` sees each
event once, in any snapshot.

Of a stream that takes appends, all events from its first version on are in ``event``. That is what
the order of the steps below is for: stop, then move; bring back, then open.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Select,
    Table,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from datapatterns.errors import VersionConflictError
from datapatterns.event_sourcing.appending.keeping_inline import KEPT_INLINE
from datapatterns.event_sourcing.events import ANY, Appended, Expected, StreamId
from datapatterns.event_sourcing.keeping.purging import ArchiveExport, export_events, purge_events
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.sql.server import check_writable
from datapatterns.transactions import reading, resuming

MOVED_EVENTS_MAX: Final = 100_000
"""The most events of one step; each is written once more, in the caller's transaction."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """Where a stream stands, as keeping events sees it."""

    id: int
    version: int
    first_version: int
    archived: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """Keeps events for long, at less cost; all of it is the business of who owns the tables.

    Attributes:
        store: Whose events.
    """

    store: EventStore

    def stop(
        self,
        conn: Connection,
        stream: StreamId,
        *,
        expected_version: int | Expected = ANY,
    ) -> int:
        """Let ``stream`` take no more appends; return its version. Stopped again, it stays so.

        Raises:
            VersionConflictError: The stream has another version, or no events.
        """
        streams = event_tables(self.store.schema).streams
        exact = None if isinstance(expected_version, Expected) else expected_version
        conditions = [_is(streams, stream)]
        if exact is not None:
            conditions.append(streams.c.version == exact)
        version = conn.scalar(
            update(streams)
            .where(*conditions)
            .values(archived_at=func.coalesce(streams.c.archived_at, func.clock_timestamp()))
            .returning(streams.c.version)
        )
        if version is None:
            found = conn.scalar(select(streams.c.version).where(_is(streams, stream)))
            expected = exact if exact is not None else "exists"
            raise VersionConflictError(str(stream), expected=expected, found=found or 0)
        return int(version)

    def compact(
        self,
        conn: Connection,
        stream: StreamId,
        summary: object,
        *,
        expected_version: int,
        metadata: Mapping[str, Any] | None = None,
    ) -> Appended:
        """Append ``summary``, and let loads begin with it.

        The summary must say all of the state: a load sees nothing of what came before. What came
        before is still there for time travel and for readers of the log; `move` it then.
        Snapshots from before are dropped.

        Args:
            conn: A connection in a transaction. The caller commits.
            stream: Which one.
            summary: A `NewEvent`, or an object of a declared class. A `NewEvent` makes a retry
                recognisable by its id.
            expected_version: The version that it sums up, at least 1.
            metadata: Added to the summary.

        Raises:
            StreamArchivedError: The stream is stopped.
            ValueError: ``expected_version`` is not at least 1.
            VersionConflictError: The stream has changed since. Nothing was written.
        """
        if isinstance(expected_version, Expected) or expected_version < 1:
            raise ValueError("a summary sums something up; expect the version that it was made of")
        appended = self.store.append(
            conn, stream, [summary], expected_version=expected_version, metadata=metadata
        )
        tables = event_tables(self.store.schema)
        streams, snapshots = tables.streams, tables.snapshots
        stream_id = conn.scalar(
            update(streams)
            .where(_is(streams, stream))
            .values(first_version=func.greatest(streams.c.first_version, appended.version))
            .returning(streams.c.id)
        )
        conn.execute(
            delete(snapshots).where(
                snapshots.c.stream_id == stream_id, snapshots.c.version < appended.version
            )
        )
        return appended

    def move(self, conn: Connection, stream: StreamId, *, limit: int = 1_000) -> int:
        """Move the next at most ``limit`` events into the archive; return how many.

        Of a stopped stream those are all events, of another one those before its summary; 0 says
        that no more are left. Two that move the same stream take turns.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
            ValueError: ``limit`` is out of bounds.
        """
        state = self._take(conn, stream, limit)
        if state is None:
            return 0
        moved = conn.scalar(
            _move_out(self.store.schema),
            {
                "stream_id": state.id,
                "before": state.version + 1 if state.archived else state.first_version,
                "size": limit,
            },
        )
        failpoint("archive.moved")
        return int(moved or 0)

    def move_all(
        self,
        engine: Engine,
        *,
        limit: int = 1_000,
        progress: Callable[[StreamId, int], object] | None = None,
    ) -> int:
        """Move what stopped and compacted streams leave to move; return how many events.

        Each step is a transaction of at most ``limit`` events; after a crash it simply goes on.

        Args:
            engine: Leads to the database, as who owns the tables.
            limit: The most events of one transaction.
            progress: Called after each transaction with the stream and how many were moved.
        """
        total, after = 0, 0
        while True:
            with engine.connect() as conn, reading(conn):
                pending = self.pending(conn, after_id=after)
            if not pending:
                return total
            for _, stream in pending:
                total += self._move_stream(engine, stream, limit, progress)
            after = pending[-1][0]

    def _move_stream(
        self,
        engine: Engine,
        stream: StreamId,
        limit: int,
        progress: Callable[[StreamId, int], object] | None,
    ) -> int:
        total = 0
        while True:
            with engine.connect() as conn, resuming(conn, f"moving {stream} into the archive"):
                moved = self.move(conn, stream, limit=limit)
            total += moved
            if moved and progress is not None:
                progress(stream, moved)
            if moved < limit:
                return total

    def pending(
        self, conn: Connection, *, after_id: int = 0, limit: int = 100
    ) -> list[tuple[int, StreamId]]:
        """Return the streams that have events to move: number and name, by number."""
        rows = conn.execute(
            _pending_statement(self.store.schema), {"after": after_id, "size": limit}
        )
        return [(row[0], StreamId(row[1], row[2], row[3])) for row in rows]

    def is_stopped(self, conn: Connection, stream: StreamId) -> bool:
        """Tell whether ``stream`` takes no more appends; one without events does."""
        streams = event_tables(self.store.schema).streams
        return conn.scalar(select(streams.c.archived_at).where(_is(streams, stream))) is not None

    def restore(self, conn: Connection, stream: StreamId, *, limit: int = 1_000) -> bool:
        """Bring back at most ``limit`` events of a stopped stream; tell whether it is open again.

        It is as soon as all events from its first version on are back; call it until then. What
        lies before a summary stays in the archive. Don't run `move_all` meanwhile: it would take
        them away again.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
            ValueError: ``limit`` is out of bounds.
        """
        state = self._take(conn, stream, limit)
        if state is None or not state.archived:
            return state is not None
        found = {"stream_id": state.id, "first": state.first_version, "size": limit}
        # They were appended long ago, and read models that are kept inline know of them.
        said = conn.scalar(select(func.current_setting(KEPT_INLINE, True)))
        conn.execute(_say_inline("*"))
        back = conn.scalar(_move_back(self.store.schema), found)
        conn.execute(_say_inline(said or ""))
        failpoint("archive.moved")
        if back == limit:
            return False
        streams = event_tables(self.store.schema).streams
        conn.execute(update(streams).where(streams.c.id == state.id).values(archived_at=None))
        return True

    def export(
        self,
        conn: Connection,
        stream: StreamId,
        *,
        through_version: int,
        write: Callable[[str], object],
    ) -> ArchiveExport:
        """Hand ``write`` a line for each archived event up to that version, oldest first.

        A line is what a hash chain hashes of the event, and the digest of the export is the
        SHA-256 of all lines with their line ends, as ``sha256sum`` tells it of the file.

        Raises:
            PurgeRefusedError: Some of these events are not in the archive.
        """
        return export_events(
            conn, stream, through_version=through_version, write=write, schema=self.store.schema
        )

    def purge(
        self, conn: Connection, stream: StreamId, exported: ArchiveExport, *, reason: str
    ) -> int:
        """Remove for good what was exported; return how many events.

        A tombstone says what there was: the range of versions, the digest of the export, and of
        each event. Readers of the log no longer find these events, and no older state can be
        loaded; a hash chain stays whole.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
            PurgeRefusedError: They are still needed (by a load, by a projection, or unsealed by a
                hash chain that is in use), or they are not what was exported.
        """
        check_writable(conn)
        self._take(conn, stream, 1)
        return purge_events(conn, stream, exported, reason=reason, schema=self.store.schema)

    def _take(self, conn: Connection, stream: StreamId, limit: int) -> StreamState | None:
        """Wait for others that move events of ``stream``; return where it stands then."""
        if not 1 <= limit <= MOVED_EVENTS_MAX:
            raise ValueError(f"{limit} events in one step; use 1 to {MOVED_EVENTS_MAX}")
        check_writable(conn)
        schema = self.store.schema
        streams = event_tables(schema).streams
        id_ = conn.scalar(select(streams.c.id).where(_is(streams, stream)))
        if id_ is None:
            return None
        # Not the stream's row: appends go on while a compacted stream's past is moved.
        key = func.hashtextextended(f"{schema}.event_archive", id_)
        conn.execute(select(func.pg_advisory_xact_lock(key)))
        row = conn.execute(
            select(
                streams.c.version, streams.c.first_version, streams.c.archived_at.is_not(None)
            ).where(streams.c.id == id_)
        ).one()
        return StreamState(id_, *row)


def _say_inline(what: str) -> Select[Any]:
    return select(func.set_config(KEPT_INLINE, what, True))


def _is(streams: Table, stream: StreamId) -> Any:  # noqa: ANN401 -- a condition
    return and_(
        streams.c.tenant == stream.tenant,
        streams.c.category == stream.category,
        streams.c.key == stream.key,
    )


@cache
def _move_out(schema: str) -> Select[Any]:
    tables = event_tables(schema)
    before = bindparam("before", type_=BigInteger)
    return _moved(tables.events, tables.archive, tables.events.c.version < before)


@cache
def _move_back(schema: str) -> Select[Any]:
    tables = event_tables(schema)
    first = bindparam("first", type_=BigInteger)
    return _moved(tables.archive, tables.events, tables.archive.c.version >= first)


def _moved(source: Table, target: Table, condition: Any) -> Select[Any]:  # noqa: ANN401 -- as above
    """Return one statement that moves the oldest such events of a stream, and counts them."""
    names = [column.name for column in source.c]
    chosen = (
        select(source.c.position)
        .where(source.c.stream_id == bindparam("stream_id", type_=BigInteger), condition)
        .order_by(source.c.version)
        .limit(bindparam("size", type_=BigInteger))
    )
    gone = delete(source).where(source.c.position.in_(chosen)).returning(*source.c).cte("gone")
    kept = (
        insert(target)
        .from_select(names, select(*(gone.c[name] for name in names)), include_defaults=False)
        .returning(target.c.position)
        .cte("kept")
    )
    return select(func.count()).select_from(kept)


@cache
def _pending_statement(schema: str) -> Select[Any]:
    tables = event_tables(schema)
    streams, events = tables.streams, tables.events
    end = case(
        (streams.c.archived_at.is_not(None), streams.c.version + 1), else_=streams.c.first_version
    )
    return (
        select(streams.c.id, streams.c.category, streams.c.key, streams.c.tenant)
        .where(
            streams.c.id > bindparam("after", type_=BigInteger),
            or_(streams.c.archived_at.is_not(None), streams.c.first_version > 1),
            exists().where(events.c.stream_id == streams.c.id, events.c.version < end),
        )
        .order_by(streams.c.id)
        .limit(bindparam("size", type_=BigInteger))
    )
