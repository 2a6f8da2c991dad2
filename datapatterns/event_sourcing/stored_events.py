"""Events exactly as they are stored: no class, no codec and no key is needed to read them.

What shows or copies events reads them like this: an event that today's code cannot decode must
still be seen, and a copy must hold the bytes that were appended.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import BigInteger, Connection, Select, Text, bindparam, cast, select

from datapatterns.event_sourcing.events import (
    LIMIT_MAX,
    START,
    VERSION_MAX,
    Position,
    StreamId,
)
from datapatterns.event_sourcing.high_water import read_mark
from datapatterns.event_sourcing.json_lines import NULL, StoredEvent
from datapatterns.event_sourcing.reading import check_limit
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore

_SCANNED_POSITIONS_MIN: Final = 20_000
_SCANNED_POSITIONS_PER_EVENT: Final = 20

# Between tokens JSON may hold line ends and tabs, inside of texts it cannot: so a space will do.
_ON_ONE_LINE: Final = str.maketrans("\n\r\t", "   ")


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events of the log are wanted; what is None is not asked.

    Attributes:
        event_types: Names, of any schema version.
        categories: Of the stream.
        tags: All of them must be on the event.
        tenant: Exactly this one; the empty text is a tenant, too.
    """

    event_types: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    tenant: str | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in self._parts())

    def as_json(self) -> dict[str, Any]:
        """Return what is asked, as the header of an export keeps it."""
        named = zip(("types", "categories", "tags", "tenant"), self._parts(), strict=True)
        return {
            name: sorted(part) if isinstance(part, tuple) else part
            for name, part in named
            if part is not None
        }

    def _parts(self) -> tuple[Sequence[str] | None, ...]:
        return (self.event_types, self.categories, self.tags, self.tenant)


EVERY_EVENT: Final = EventFilter()


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
class StoredEvents:
    """Reads events as they are stored.

    Attributes:
        store: The event store.
        include_archive: Read what was archived, too.
    """

    store: EventStore
    include_archive: bool = False

    def page(
        self,
        conn: Connection,
        after: Position = START,
        *,
        up_to: Position | None = None,
        limit: int = 500,
        where: EventFilter = EVERY_EVENT,
    ) -> StoredPage:
        """Return at most ``limit`` final events that follow ``after``, up to ``up_to``.

        Raises:
            CheckpointError: ``after`` lies beyond the log.
            IsolationLevelError: The transaction is not READ COMMITTED.
            ValueError: ``limit`` is not positive.
        """
        check_limit(limit)
        limit, after = min(limit, LIMIT_MAX), Position(max(after, START))
        # Two statements, as in read_log: rows up to the mark show to *later* statements only.
        mark = read_mark(conn, schema=self.store.schema, after=after)
        last = mark if up_to is None else Position(min(mark, up_to))
        if last <= after:
            return StoredPage([], after, caught_up=True)
        end = last
        if where:  # where matches are rare, one page could scan the log
            reach = max(_SCANNED_POSITIONS_MIN, _SCANNED_POSITIONS_PER_EVENT * limit)
            end = Position(min(last, after + reach))
        position = self._events.c.position
        rows = conn.execute(
            self._filtered(where)
            .where(position > bindparam("after", after), position <= bindparam("end", end))
            .order_by(position)
            .limit(limit)
        ).all()
        checkpoint = Position(rows[-1].position) if len(rows) == limit else end
        return StoredPage([_stored(row) for row in rows], checkpoint, caught_up=checkpoint == last)

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
        version, streams = self._events.c.version, event_tables(self.store.schema).streams
        page = (
            self._select()
            .where(
                streams.c.tenant == stream.tenant,
                streams.c.category == stream.category,
                streams.c.key == stream.key,
                version > min(max(after_version, 0), VERSION_MAX),
            )
            .order_by(version.desc() if backwards else version)
            .limit(min(limit, LIMIT_MAX))
        )
        return [_stored(row) for row in conn.execute(page)]

    def find(self, conn: Connection, which: int | UUID) -> StoredEvent | None:
        """Return the event at that position or with that id; None if there is none.

        Ids have no index: each costs every writer, and people ask for one now and then. So finding
        one reads all events.
        """
        events = self._events
        wanted = (
            events.c.event_id == which
            if isinstance(which, UUID)
            else events.c.position == bindparam("which", which, type_=BigInteger)
        )
        row = conn.execute(self._select().where(wanted).limit(1)).one_or_none()
        return _stored(row) if row else None

    @property
    def _events(self) -> Any:  # noqa: ANN401 -- a table or a view
        tables = event_tables(self.store.schema)
        return tables.all_events if self.include_archive else tables.events

    def _select(self) -> Select[Any]:
        return _every_event(self.store.schema, archive=self.include_archive)

    def _filtered(self, where: EventFilter) -> Select[Any]:
        tables, page = event_tables(self.store.schema), self._select()
        if where.event_types is not None:
            page = page.where(tables.event_types.c.name.in_(where.event_types))
        if where.categories is not None:
            page = page.where(tables.streams.c.category.in_(where.categories))
        if where.tags is not None:
            page = page.where(self._events.c.tags.contains(list(where.tags)))
        if where.tenant is not None:
            page = page.where(tables.streams.c.tenant == where.tenant)
        return page


@cache
def _every_event(schema: str, *, archive: bool) -> Select[Any]:
    tables = event_tables(schema)
    events: Any = tables.all_events if archive else tables.events
    streams, names = tables.streams, tables.event_types
    return select(
        events.c.position,
        streams.c.tenant,
        streams.c.category,
        streams.c.key,
        events.c.version,
        names.c.name,
        names.c.schema_version,
        events.c.event_id,
        events.c.at,
        cast(events.c.data, Text).label("data"),
        cast(events.c.meta, Text).label("meta"),
        events.c.codec,
        events.c.payload,
        events.c.tags,
    ).select_from(
        events.join(streams, streams.c.id == events.c.stream_id).join(
            names, names.c.id == events.c.type_id
        )
    )


def _stored(row: Any) -> StoredEvent:  # noqa: ANN401
    at: datetime = row.at
    return StoredEvent(
        position=row.position,
        tenant=row.tenant,
        category=row.category,
        key=row.key,
        version=row.version,
        event_type=row.name,
        schema_version=row.schema_version,
        event_id=row.event_id,
        recorded_at=at.astimezone(UTC),
        data=_raw(row.data),
        metadata=_raw(row.meta),
        codec=row.codec,
        payload=None if row.payload is None else b64encode(row.payload).decode(),
        tags=tuple(row.tags or ()),
    )


def _raw(json: str | None) -> msgspec.Raw:
    return NULL if json is None else msgspec.Raw(json.translate(_ON_ONE_LINE).encode())
