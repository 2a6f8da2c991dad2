"""Read one stream, or all events in an order that never changes, without skipping any.

All of it reads archived events, too: a reader of the log would lose those that are archived between
two of its pages, and the empty archive costs nothing that could be measured.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from datapatterns.errors import EventOrphanedError
from datapatterns.event_sourcing.content.contents import Contents, StoredEvent
from datapatterns.event_sourcing.events import LIMIT_MAX, START, VERSION_MAX, Position, StreamId
from datapatterns.event_sourcing.log.filtering import FilterShape, LogFilter
from datapatterns.event_sourcing.log.high_water import read_mark
from datapatterns.event_sourcing.log.log_statements import (
    TYPED,
    WHOLE,
    names_statement,
    next_statement,
    page_statement,
    reach_statement,
    size_of,
    stream_statement,
)
from datapatterns.event_sourcing.recorded import LogPage, RecordedEvent, TypedPage
from datapatterns.sql.fetching import JSON_OID, MOMENT_OID, UUID_OID, Rows, fetch_rows

_SCANNED_MIN: Final = 10_000
_SCANNED_PER_EVENT: Final = 20
AS_SENT: Final = (JSON_OID, UUID_OID, MOMENT_OID)
"""The types of an event's columns that are cheaper to take as bytes."""


class Question(NamedTuple):
    """What a page is to hold.

    Attributes:
        after: A checkpoint, or the page before.
    """

    after: Position | LogPage | TypedPage
    limit: int
    matching: LogFilter
    published: bool


class PageRows(NamedTuple):
    """A page of the log as rows, where to go on, and up to where the log was final."""

    rows: Rows
    checkpoint: Position
    mark: Position


class Names(NamedTuple):
    """What the ids in rows stand for: streams, and types with their schema version."""

    streams: dict[int, StreamId]
    types: dict[int, tuple[str, int]]


def read_log(conn: Connection, asked: Question, *, schema: str, contents: Contents) -> LogPage:
    """Do what `EventStore.read_log` promises."""
    rows, checkpoint, mark = read_page_rows(conn, asked, schema=schema, columns=WHOLE)
    return LogPage(_recorded(conn, rows, schema, contents), checkpoint, mark)


def read_page_rows(
    conn: Connection, asked: Question, *, schema: str, columns: tuple[str, ...]
) -> PageRows:
    """Return the rows of a page: ``columns`` of the events that match."""
    check_limit(asked.limit)
    known = None
    if isinstance(asked.after, LogPage | TypedPage):
        after, known = asked.after.checkpoint, asked.after.mark
    else:
        after = Position(max(asked.after, START))
    if known is not None and known > after and not asked.published:
        # Events up to a mark stay final, so nobody has to be asked. But do they show here? The
        # statement finds nothing in a transaction where that is not certain.
        page = _page(conn, asked, after, known, schema=schema, columns=columns, fresh=True)
        if page.rows:
            return page
        read_mark(conn, schema=schema, after=known, published=False)  # refuses such a transaction
        return page
    # Two statements: the snapshot of the first could miss rows of writers that ended before it
    # looked at the fences. The price of the mark: a transaction that has appended and stays open
    # holds every reader back; one that only wrote other tables holds back nobody.
    mark = read_mark(conn, schema=schema, after=after, published=asked.published)
    if mark <= after:  # it may step back a little, see high_water_mark(); a checkpoint must not
        return PageRows([], after, after)
    return _page(conn, asked, after, mark, schema=schema, columns=columns, fresh=False)


def _page(  # noqa: PLR0913 -- a question and what was found out since
    conn: Connection,
    asked: Question,
    after: Position,
    mark: Position,
    *,
    schema: str,
    columns: tuple[str, ...],
    fresh: bool,
) -> PageRows:
    limit, shape = min(asked.limit, LIMIT_MAX), asked.matching.shape
    values = {**asked.matching.parameters, "after": after, "end": mark, "limit": limit}
    end = values["end"] = _end(conn, values, shape, schema=schema)
    statement = page_statement(schema, columns, shape, size_of(mark), fresh=fresh)
    # By tag, each event is looked up: a plan from before there was an archive would scan it.
    prepare = False if shape.by_tag else None
    rows = fetch_rows(conn, statement, values, as_sent=AS_SENT, prepare=prepare)
    if not rows and end < mark and not shape.by_tag:  # purges and setval() leave long gaps
        rest = {"after": end, "end": mark}
        ahead = fetch_rows(conn, next_statement(schema, size_of(mark)), rest)
        end = Position(ahead[0][0] - 1) if ahead else mark
    # A page that is not full has seen all that matches up to its end.
    checkpoint = Position(rows[-1][0]) if len(rows) == limit else end
    return PageRows(rows, checkpoint, mark)


def read_stream(  # noqa: PLR0913 -- EventStore binds the schema
    conn: Connection,
    stream: StreamId,
    *,
    schema: str,
    contents: Contents,
    after_version: int,
    to_version: int | None,
    limit: int,
    backwards: bool,
) -> list[RecordedEvent]:
    """Do what `EventStore.read_stream` promises."""
    check_limit(limit)
    asked = {
        "tenant": stream.tenant,
        "category": stream.category,
        "key": stream.key,
        "after_version": min(max(after_version, 0), VERSION_MAX),
        "to_version": VERSION_MAX if to_version is None else min(max(to_version, 0), VERSION_MAX),
        "limit": min(limit, LIMIT_MAX),
    }
    statement = stream_statement(schema, backwards=backwards)
    rows = fetch_rows(conn, statement, asked, as_sent=AS_SENT, prepare=False)
    return _recorded(conn, rows, schema, contents)


def check_limit(limit: int) -> None:
    """Refuse a page without events.

    Raises:
        ValueError: ``limit`` is not positive.
    """
    if limit < 1:
        raise ValueError(f"a page of {limit} events cannot move on; ask for at least 1")


def read_names(conn: Connection, rows: Rows, schema: str) -> Names:
    """Return what the ids in ``rows`` stand for; their columns begin as `log_statements.TYPED`."""
    streams, types = {row[1] for row in rows}, {row[3] for row in rows}
    asked = {"streams": [*streams], "types": [*types]}
    names = Names({}, {})
    statement = names_statement(schema, size_of(rows[-1][0]))
    for id_, name, key, tenant, schema_version in fetch_rows(conn, statement, asked):
        if schema_version is not None:
            names.types[id_] = name, schema_version
        else:
            names.streams[id_] = StreamId(name, key, tenant)
    if len(names.streams) < len(streams) or len(names.types) < len(types):
        orphan = next(
            row for row in rows if row[1] not in names.streams or row[3] not in names.types
        )
        raise EventOrphanedError(position=orphan[0])
    return names


def read_contents(
    conn: Connection, rows: Rows, names: Names, contents: Contents
) -> Sequence[bytes]:
    """Return what each event says as JSON.

    The columns of ``rows`` begin as `BOUND`; as `TYPED` will do for a store of plain contents.
    """
    if contents.is_plain and not any(row[6] for row in rows):
        return [row[4] for row in rows]
    stored = [_stored(row, names) for row in rows]
    return [text.encode() for text in contents.opened(conn, stored)]


def _stored(row: Sequence[Any], names: Names) -> StoredEvent:
    # A store of plain contents reads no ids, and refuses this one whatever its id is.
    event_id = UUID(bytes=row[7]) if len(row) > len(TYPED) else UUID(int=0)
    content = row[5] if row[6] else row[4]
    return StoredEvent(names.streams[row[1]].tenant, event_id, row[6], content)


def _end(conn: Connection, values: dict[str, Any], shape: FilterShape, *, schema: str) -> Position:
    """Return how far a page may look.

    Where matches are rare, one page could scan the log. So its reach is bounded, and the checkpoint
    moves over what did not match.
    """
    mark = Position(values["end"])
    reach = max(_SCANNED_MIN, _SCANNED_PER_EVENT * values["limit"])
    if not any(shape):
        return mark
    if not shape.by_tag:
        return Position(min(mark, values["after"] + reach))
    if shape == _BY_TAG_ALONE and len(values["tags"]) == 1:
        return mark  # each entry of the index is an event of the page
    beyond = fetch_rows(conn, reach_statement(schema, size_of(mark)), {**values, "reach": reach})
    return Position(beyond[0][0] - 1) if beyond else mark


_BY_TAG_ALONE: Final = LogFilter(tags=["any"], tenant="any").shape


def _recorded(conn: Connection, rows: Rows, schema: str, contents: Contents) -> list[RecordedEvent]:
    if not rows:
        return []
    return recorded_events(conn, rows, read_names(conn, rows, schema), contents)


def recorded_events(
    conn: Connection, rows: Rows, names: Names, contents: Contents
) -> list[RecordedEvent]:
    """Return the events that ``rows`` are, whose columns are `log_statements.WHOLE`."""
    streams, types = names
    events = []
    given: Sequence[Any] = read_contents(conn, rows, names, contents)  # JSON, decoded if wanted
    for row, json in zip(rows, given, strict=True):
        position, stream_id, version, type_id, _, _, _, event_id, meta, at, tags = row
        name, schema_version = types[type_id]
        events.append(
            RecordedEvent(
                position,
                streams[stream_id],
                version,
                name,
                schema_version,
                json,
                meta,
                event_id,
                at,
                tuple(tags) if tags else (),
            )
        )
    return events
