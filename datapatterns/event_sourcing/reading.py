"""Read one stream, or all events in an order that never changes, without skipping any."""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, Text, cast, select

from datapatterns.event_sourcing.contents import Contents, event_content
from datapatterns.event_sourcing.events import (
    LIMIT_MAX,
    START,
    VERSION_MAX,
    LogPage,
    Position,
    RecordedEvent,
    StreamId,
)
from datapatterns.event_sourcing.high_water import read_high_water_mark
from datapatterns.event_sourcing.payload import decode_stored
from datapatterns.event_sourcing.schema import event_tables

_SCANNED_POSITIONS_MIN: Final = 10_000
_SCANNED_POSITIONS_PER_EVENT: Final = 20


def read_log(
    conn: Connection,
    after: Position,
    *,
    schema: str,
    contents: Contents,
    limit: int,
    event_types: Collection[str] | None,
) -> LogPage:
    """Do what `EventStore.read_log` promises."""
    check_limit(limit)
    # Two statements: the snapshot of the first could miss rows of writers that ended before it
    # looked at the fences. The price of the mark: a transaction that has appended and stays open
    # holds every reader back; one that only wrote other tables holds back nobody.
    limit, after = min(limit, LIMIT_MAX), Position(max(after, START))
    mark = read_high_water_mark(conn, schema=schema, after=after)
    if mark <= after:  # it may step back a little, see high_water_mark(); a checkpoint must not
        return LogPage([], after, caught_up=True)
    end = mark
    page = _every_event(schema)
    events = event_tables(schema).events
    if event_types is not None:
        # Where matches are rare, one page could scan the log. So its reach is bounded, and the
        # checkpoint moves over what did not match.
        reach = max(_SCANNED_POSITIONS_MIN, _SCANNED_POSITIONS_PER_EVENT * limit)
        end = Position(min(mark, after + reach))
        names = event_tables(schema).event_types
        page = page.where(names.c.name.in_(event_types))
    rows = conn.execute(
        page.where(events.c.position > after, events.c.position <= end)
        .order_by(events.c.position)
        .limit(limit)
    ).all()
    checkpoint = Position(rows[-1][0]) if len(rows) == limit else end
    return LogPage(_recorded(conn, rows, contents), checkpoint, caught_up=checkpoint == mark)


def read_stream(  # noqa: PLR0913 -- EventStore binds the schema and contents
    conn: Connection,
    stream: StreamId,
    *,
    schema: str,
    contents: Contents,
    after_version: int,
    limit: int,
    backwards: bool,
) -> list[RecordedEvent]:
    """Do what `EventStore.read_stream` promises."""
    check_limit(limit)
    tables = event_tables(schema)
    version = tables.events.c.version
    page = (
        _every_event(schema)
        .where(
            tables.streams.c.tenant == stream.tenant,
            tables.streams.c.category == stream.category,
            tables.streams.c.key == stream.key,
            version > min(max(after_version, 0), VERSION_MAX),
        )
        .order_by(version.desc() if backwards else version)
        .limit(min(limit, LIMIT_MAX))
    )
    return _recorded(conn, conn.execute(page).all(), contents)


def check_limit(limit: int) -> None:
    """Refuse a page without events.

    Raises:
        ValueError: ``limit`` is not positive.
    """
    if limit < 1:
        raise ValueError(f"a page of {limit} events cannot move on; ask for at least 1")


@cache
def _every_event(schema: str) -> Select[Any]:
    tables = event_tables(schema)
    events, streams, names = tables.events, tables.streams, tables.event_types
    return select(
        events.c.position,
        streams.c.category,
        streams.c.key,
        streams.c.tenant,
        events.c.version,
        names.c.name,
        names.c.schema_version,
        # As text: decoding it here is several times faster than the driver's JSON type.
        event_content(events),
        cast(events.c.meta, Text),
        events.c.event_id,
        events.c.at,
    ).select_from(
        events.join(streams, streams.c.id == events.c.stream_id).join(
            names, names.c.id == events.c.type_id
        )
    )


def _recorded(
    conn: Connection, rows: Sequence[Row[Any]], contents: Contents
) -> list[RecordedEvent]:
    data = contents.incoming(conn, [row[7] for row in rows], tenant=[row[3] for row in rows])
    return [_event(row, text) for row, text in zip(rows, data, strict=True)]


def _event(row: Row[Any], data: str) -> RecordedEvent:
    (position, category, key, tenant, version, name, schema_version, _, meta, id_, at) = row
    return RecordedEvent(
        Position(position),
        StreamId(category, key, tenant),
        version,
        name,
        schema_version,
        decode_stored(data, event_type=name, schema_version=schema_version),
        meta and decode_stored(meta, event_type=name, schema_version=schema_version),
        id_,
        at,
    )
