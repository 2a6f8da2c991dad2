"""Read back what a transaction has just appended: all of it in one statement."""

from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Text,
    and_,
    bindparam,
    column,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from datapatterns.event_sourcing.appending.keeping_inline import KEPT_INLINE
from datapatterns.event_sourcing.content.contents import Contents
from datapatterns.event_sourcing.events import Position, StreamId
from datapatterns.event_sourcing.log.log_statements import WHOLE, size_of
from datapatterns.event_sourcing.log.reading import AS_SENT, Names, recorded_events
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.sql.fetching import fetch_rows

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own


class JustAppended(NamedTuple):
    """Which events of one stream."""

    stream: StreamId
    after_version: int
    to_version: int
    position: Position
    """That of the last of them."""


def read_back(
    conn: Connection, appended: Sequence[JustAppended], *, schema: str, contents: Contents
) -> list[RecordedEvent]:
    """Return what was appended, in the order of the log, and say no more what is kept inline."""
    asked = {
        "tenants": [one.stream.tenant for one in appended],
        "categories": [one.stream.category for one in appended],
        "keys": [one.stream.key for one in appended],
        "after": [one.after_version for one in appended],
        "to": [one.to_version for one in appended],
    }
    statement = _statement(schema, size_of(max(one.position for one in appended)))
    found = fetch_rows(conn, statement, asked, as_sent=AS_SENT)
    names = Names({}, {})
    rows = []
    for *row, place, name, schema_version, _ in found:
        names.streams[row[1]] = appended[place - 1].stream
        names.types[row[3]] = name, schema_version
        rows.append(tuple(row))
    return recorded_events(conn, rows, names, contents)


@cache
def _statement(schema: str, size: int) -> str:
    tables = event_tables(schema)
    events, streams, types = tables.events, tables.streams, tables.event_types
    wanted = (
        func.unnest(
            *(bindparam(name, type_=ARRAY(Text)) for name in ("tenants", "categories", "keys")),
            *(bindparam(name, type_=ARRAY(BigInteger)) for name in ("after", "to")),
        )
        .table_valued(
            *(column(name, Text) for name in ("tenant", "category", "key")),
            *(column(name, BigInteger) for name in ("after_version", "to_version")),
            with_ordinality="place",
            name="wanted",
        )
        .render_derived()
    )
    said = literal_column(f"set_config('{KEPT_INLINE}', '', true)", Text)
    said_no_more = select(said).scalar_subquery()
    found = (
        select(
            *(events.c[name] for name in WHOLE),
            wanted.c.place,
            types.c.name,
            types.c.schema_version,
            said_no_more,
        )
        # Another statement when the log has doubled: a kept plan of a small one would scan it.
        .prefix_with(f"/* up to {2**size} events */")
        .join_from(
            wanted,
            streams,
            and_(
                streams.c.tenant == wanted.c.tenant,
                streams.c.category == wanted.c.category,
                streams.c.key == wanted.c.key,
            ),
        )
        .join(
            events,
            and_(
                events.c.stream_id == streams.c.id,
                events.c.version > wanted.c.after_version,
                events.c.version <= wanted.c.to_version,
            ),
        )
        .join(types, types.c.id == events.c.type_id)
        .order_by(events.c.position)
    )
    return str(found.compile(dialect=_DIALECT))
