"""Events exactly as they are stored: no class, no codec and no key is needed to read them.

What shows or copies events reads them like this: an event that today's code cannot decode must
still be seen, and a copy must hold the bytes that were appended.
"""

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import BigInteger, Connection, Select, bindparam, func, literal_column, select
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from datapatterns.event_sourcing.events import LIMIT_MAX, START, VERSION_MAX, Position, StreamId
from datapatterns.event_sourcing.log.filtering import EVERYTHING, LogFilter
from datapatterns.event_sourcing.log.log_statements import WHOLE, stream_statement
from datapatterns.event_sourcing.log.reading import (
    AS_SENT,
    Names,
    Question,
    check_limit,
    read_names,
    read_page_rows,
)
from datapatterns.event_sourcing.recorded import LogPage
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore
from datapatterns.event_sourcing.transfer.json_lines import NULL, StoredEvent
from datapatterns.sql.fetching import Rows, fetch_rows

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own
_SEARCHED_AT_ONCE: Final = 100_000
_BEGINNING: Final = datetime(2000, 1, 1, tzinfo=UTC)  # from where PostgreSQL counts

# Between tokens JSON may hold line ends and tabs, inside of texts it cannot: so a space will do.
_ON_ONE_LINE: Final = bytes.maketrans(b"\n\r\t", b"   ")


@dataclass(frozen=True, slots=True)
class StoredPage:
    """Some stored events in the order of the log.

    Attributes:
        events: In rising position.
        checkpoint: Where to go on; beyond the last event if those that follow do not match.
        caught_up: Nothing further is final yet, or asked for.
    """

    events: list[StoredEvent]
    checkpoint: Position
    caught_up: bool


@dataclass(frozen=True, slots=True)
class Searched:
    """How far a search for an event has come.

    Attributes:
        positions: How many positions, from the last one downwards, do not have it.
        total: How many there are.
    """

    positions: int
    total: int


@dataclass(frozen=True, slots=True)
class StoredEvents:
    """Reads events as they are stored, archived ones among them.

    Attributes:
        store: The event store.
    """

    store: EventStore

    def page(
        self,
        conn: Connection,
        after: Position = START,
        *,
        up_to: Position | None = None,
        limit: int = 500,
        matching: LogFilter = EVERYTHING,
    ) -> StoredPage:
        """Return at most ``limit`` final events that follow ``after``.

        Args:
            conn: A connection in a transaction.
            after: The checkpoint of the page before.
            up_to: No further than this: a mark that was read before, so nobody is asked anew.
            limit: At most.
            matching: Which events to return.

        Raises:
            CheckpointError: ``after`` lies beyond the log.
            IsolationLevelError: The transaction is not READ COMMITTED.
            ValueError: ``limit`` is not positive.
        """
        begin = after if up_to is None else LogPage([], after, up_to)
        asked = Question(begin, limit, matching, published=False)
        if up_to is not None and up_to <= after:
            return StoredPage([], after, caught_up=True)
        rows, checkpoint, mark = read_page_rows(
            conn, asked, schema=self.store.schema, columns=WHOLE
        )
        return StoredPage(self._stored(conn, rows), checkpoint, caught_up=checkpoint >= mark)

    def stream(
        self,
        conn: Connection,
        stream: StreamId,
        *,
        after_version: int = 0,
        limit: int = 500,
        backwards: bool = False,
    ) -> list[StoredEvent]:
        """Return at most ``limit`` events of one stream that follow ``after_version``.

        Oldest first; with ``backwards``, the newest first.

        Raises:
            ValueError: ``limit`` is not positive.
        """
        check_limit(limit)
        asked = {
            "tenant": stream.tenant,
            "category": stream.category,
            "key": stream.key,
            "after_version": min(max(after_version, 0), VERSION_MAX),
            "to_version": VERSION_MAX,
            "limit": min(limit, LIMIT_MAX),
        }
        statement = stream_statement(self.store.schema, backwards=backwards)
        return self._stored(conn, fetch_rows(conn, statement, asked, as_sent=AS_SENT))

    def find(
        self,
        conn: Connection,
        which: int | UUID,
        *,
        report: Callable[[Searched], object] = lambda _: None,
    ) -> StoredEvent | None:
        """Return the event at that position or with that id; None if there is none.

        Ids have no index: it would cost every writer, and people ask for one now and then. So
        finding one reads events until it is there, the newest first.

        Args:
            conn: A connection in a transaction.
            which: Its position, or its id.
            report: Is told how far it has come, after each of many short statements.
        """
        if not isinstance(which, UUID):
            return self._found(conn, by_id=False, which=which)
        left = total = conn.scalar(select(func.max(self._positions))) or 0
        while left > 0:
            after = left - _SEARCHED_AT_ONCE
            found = self._found(conn, by_id=True, which=which, after=after, up_to=left)
            if found is not None:
                return found
            # Rolled-back transactions and restored logs can leave wide gaps.
            left = conn.scalar(select(func.max(self._positions)).where(self._positions <= after))
            left = left or 0
            report(Searched(total - left, total))
        return None

    def type_names(self, conn: Connection) -> set[str]:
        """Return the names of all types of which there were ever events."""
        return set(conn.scalars(select(event_tables(self.store.schema).event_types.c.name)))

    @property
    def _positions(self) -> Any:  # noqa: ANN401 -- a column
        return event_tables(self.store.schema).all_events.c.position

    def _found(self, conn: Connection, *, by_id: bool, **asked: object) -> StoredEvent | None:
        statement = _find_statement(self.store.schema, by_id=by_id)
        rows = fetch_rows(conn, statement, asked, as_sent=AS_SENT)
        return next(iter(self._stored(conn, rows)), None)

    def _stored(self, conn: Connection, rows: Rows) -> list[StoredEvent]:
        if not rows:
            return []
        names = read_names(conn, rows, self.store.schema)
        return [_stored(row, names) for row in rows]


@cache
def _find_statement(schema: str, *, by_id: bool) -> str:
    events = event_tables(schema).all_events
    found: Select[Any] = select(*(events.c[name] for name in WHOLE)).limit(literal_column("1"))
    if by_id:
        found = found.where(
            events.c.event_id == bindparam("which"),
            events.c.position > bindparam("after", type_=BigInteger),
            events.c.position <= bindparam("up_to", type_=BigInteger),
        )
    else:
        found = found.where(events.c.position == bindparam("which", type_=BigInteger))
    return str(found.compile(dialect=_DIALECT))


def _stored(row: Any, names: Names) -> StoredEvent:  # noqa: ANN401
    position, stream_id, version, type_id, data, payload, codec, event_id, meta, at, tags = row
    stream = names.streams[stream_id]
    event_type, schema_version = names.types[type_id]
    return StoredEvent(
        position=position,
        tenant=stream.tenant,
        category=stream.category,
        key=stream.key,
        version=version,
        event_type=event_type,
        schema_version=schema_version,
        event_id=UUID(bytes=event_id),
        recorded_at=_BEGINNING + timedelta(microseconds=int.from_bytes(at, signed=True)),
        data=_raw(data),
        metadata=_raw(meta),
        codec=codec,
        payload=None if payload is None else b64encode(payload).decode(),
        tags=tuple(tags or ()),
    )


def _raw(json: bytes | None) -> msgspec.Raw:
    return NULL if json is None else msgspec.Raw(json.translate(_ON_ONE_LINE))
