"""Read what a decision over several streams is about, and keep others from adding to it."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Select,
    Text,
    bindparam,
    case,
    cast,
    exists,
    func,
    null,
    select,
    union,
)

from datapatterns.errors import IsolationLevelError
from datapatterns.event_sourcing.appending.tag_query import (
    Condition,
    Tagged,
    TaggedPage,
    TagQuery,
    locked_tags,
)
from datapatterns.event_sourcing.content.contents import Contents
from datapatterns.event_sourcing.content.payload import decode_stored
from datapatterns.event_sourcing.events import (
    LIMIT_MAX,
    START,
    VERSION_MAX,
    Position,
    RecordedEvent,
    StreamId,
)
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.log.high_water import read_mark
from datapatterns.event_sourcing.log.reading import check_limit
from datapatterns.event_sourcing.schema import EventTables, event_tables
from datapatterns.transactions import refuse_autocommit

_READ_COMMITTED: Final = "read committed"


def read_tagged(  # noqa: PLR0913 -- EventStore binds the schema and types
    conn: Connection,
    query: TagQuery,
    *,
    tenant: str,
    after: Position,
    limit: int,
    exclusively: bool,
    schema: str,
    types: EventTypes,
    contents: Contents,
) -> TaggedPage:
    """Do what `EventStore.read_tagged` promises."""
    check_limit(limit)
    StreamId("any", "any", tenant)  # refuses what cannot name a tenant
    limit, after = min(limit, LIMIT_MAX), Position(min(max(after, START), VERSION_MAX))
    if exclusively:
        _lock(conn, query, tenant=tenant, schema=schema)
        end = None
    else:
        # Not the newest position: an older one could show later, and would lie below it. The
        # decision would not know of it, and the condition would not look there.
        end = read_mark(conn, schema=schema, after=after)
        if end <= after:  # it may step back a little; a checkpoint must not
            return _page([], after, query, tenant=tenant, caught_up=True)
    found = _matching(
        query, types, event_tables(schema), contents, after=after, end=end, limit=limit
    )
    rows = conn.execute(found, {"tenant": tenant}).all()
    data = contents.incoming(conn, [row[7] for row in rows], tenant=[row[3] for row in rows])
    events = [_recorded(row, text) for row, text in zip(rows, data, strict=True)]
    last = events[-1].position if events else after
    caught_up = len(events) < limit
    if end is None:
        return TaggedPage(events, last, caught_up, condition=None)
    return _page(events, end if caught_up else last, query, tenant=tenant, caught_up=caught_up)


def _page(
    events: list[RecordedEvent],
    checkpoint: Position,
    query: TagQuery,
    *,
    tenant: str,
    caught_up: bool,
) -> TaggedPage:
    return TaggedPage(events, checkpoint, caught_up, Condition(query, checkpoint, tenant))


def _lock(conn: Connection, query: TagQuery, *, tenant: str, schema: str) -> None:
    refuse_autocommit(conn)  # the locks would be gone at once
    isolation = func.current_setting("transaction_isolation", type_=Text)
    lock = event_tables(schema).function(
        "lock_tags",
        bindparam("tenant", tenant, type_=Text()),
        cast(null(), ARRAY(Text)),
        bindparam("tags", locked_tags(query), type_=ARRAY(Text)),
        returns=Text(),
    )
    # Where the snapshot is older, waiting for the locks would not show what was waited for.
    found = conn.scalar(
        select(isolation).where(case((isolation == _READ_COMMITTED, cast(lock, Text) == "")))
    )
    if found is None:
        raise IsolationLevelError(found="an older snapshot", needed=_READ_COMMITTED)


def _matching(  # noqa: PLR0913 -- a statement in one piece
    query: TagQuery,
    types: EventTypes,
    tables: EventTables,
    contents: Contents,
    *,
    after: Position,
    end: Position | None,
    limit: int,
) -> Select[Any]:
    parts = []
    for item in query.items:
        positions = _positions(item, item.type_names(types), tables, after=after, end=end)
        # Each item by itself, so that one with many matches is not read to its end.
        page = positions.order_by("position").limit(limit).subquery()
        parts.append(select(page.c.position))
    found = union(*parts).subquery("found")
    wanted = select(found.c.position).order_by(found.c.position).limit(limit).subquery("wanted")
    events, streams, names = tables.all_events, tables.streams, tables.event_types
    return (
        select(
            events.c.position,
            streams.c.category,
            streams.c.key,
            streams.c.tenant,
            events.c.version,
            names.c.name,
            names.c.schema_version,
            contents.event_column(events),
            cast(events.c.meta, Text),
            events.c.event_id,
            events.c.at,
            events.c.tags,
        )
        .select_from(
            wanted.join(events, events.c.position == wanted.c.position)
            .join(streams, streams.c.id == events.c.stream_id)
            .join(names, names.c.id == events.c.type_id)
        )
        .order_by(events.c.position)
    )


def _positions(
    item: Tagged,
    names: Sequence[str] | None,
    tables: EventTables,
    *,
    after: Position,
    end: Position | None,
) -> Select[Any]:
    of_first = tables.tags.alias()
    tenant = bindparam("tenant", type_=Text())
    first, *others = item.tags
    wanted: list[ColumnElement[bool]] = [
        of_first.c.tenant == tenant,
        of_first.c.tag == first,
        of_first.c.position > after,
    ]
    if end is not None:
        wanted.append(of_first.c.position <= end)
    if names is not None:
        kinds = tables.event_types
        wanted.append(of_first.c.type_id.in_(select(kinds.c.id).where(kinds.c.name.in_(names))))
    for other in others:
        one = tables.tags.alias()
        wanted.append(
            exists().where(
                one.c.tenant == tenant, one.c.tag == other, one.c.position == of_first.c.position
            )
        )
    return select(of_first.c.position).where(*wanted)


def _recorded(row: Any, data: str) -> RecordedEvent:  # noqa: ANN401 -- a row
    (position, category, key, tenant, version, name, schema_version, _, meta, id_, at, tags) = row
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
        tuple(tags),
    )
