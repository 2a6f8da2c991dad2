"""The statements that read events, compiled once for each shape of a question.

The driver prepares what it sends often, and PostgreSQL then keeps its plan. A plan that was made
while a table was small would scan it for ever; one that is made for each page costs as much as
reading a third of the page. So a statement says in a comment how large the log is, in powers of
two: when it has doubled, that is another statement, and planned anew.
"""

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    CompoundSelect,
    Integer,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from datapatterns.event_sourcing.log.filtering import FilterShape
from datapatterns.event_sourcing.schema import event_tables

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own
_MOMENT: Final = TIMESTAMP(timezone=True)

TYPED: Final = ("position", "stream_id", "version", "type_id", "data", "payload", "codec")
"""What a typed event is made of."""

BOUND: Final = (*TYPED, "event_id")
"""The same with what codecs bind a payload to."""

WHOLE: Final = (*BOUND, "meta", "at", "tags")
"""What an event is made of."""


@cache
def page_statement(
    schema: str, columns: tuple[str, ...], shape: FilterShape, size: int, *, fresh: bool
) -> str:
    """Return what reads a page of the log: events of a range of positions, in their order.

    The range comes first, whatever the filter: no condition is written as a join, or the planner
    could begin with all events of a stream, or of a type, and sort them.

    With ``fresh`` it finds nothing in an older snapshot, nor on a standby.
    """
    events = event_tables(schema).all_events
    wanted = select(*(events.c[name] for name in columns)).where(*_conditions(schema, shape))
    if fresh:
        isolation = func.current_setting(literal_column("'transaction_isolation'"), type_=Text)
        wanted = wanted.where(
            isolation == literal_column("'read committed'"),
            ~func.pg_is_in_recovery(type_=Boolean),
        )
    if shape.by_tag:
        # OFFSET 0 keeps the planner from joining in another order: from all events with the tags.
        tagged = event_tables(schema).tags
        of_tag = wanted.where(events.c.position == tagged.c.position)
        one = of_tag.offset(literal_column("0")).lateral("one")
        page = select(one).join_from(tagged, one, true())
        page = page.where(*_is_tagged(schema), *_in_range(tagged.c.position))
        order: ColumnElement[int] = tagged.c.position
    else:
        page = wanted.where(*_in_range(events.c.position))
        order = events.c.position
    page = page.order_by(order).limit(bindparam("limit", type_=BigInteger))
    return _compiled(_sized(page, size))


@cache
def reach_statement(schema: str, size: int) -> str:
    """Return what finds where the range of a page by tag has to end, if it has to."""
    tagged = event_tables(schema).tags
    page = (
        _sized(select(tagged.c.position), size)
        .where(*_is_tagged(schema), *_in_range(tagged.c.position))
        .order_by(tagged.c.position)
        .offset(bindparam("reach", type_=BigInteger))
        .limit(literal_column("1"))
    )
    return _compiled(page)


@cache
def next_statement(schema: str, size: int) -> str:
    """Return what finds the first position of a range that has an event."""
    position = event_tables(schema).all_events.c.position
    first = _sized(select(position), size).where(*_in_range(position)).order_by(position)
    return _compiled(first.limit(literal_column("1")))


@cache
def stream_statement(schema: str, *, backwards: bool) -> str:
    """Return what reads a range of versions of one stream."""
    events, streams = event_tables(schema).all_events, event_tables(schema).streams
    stream = (
        select(streams.c.id)
        .where(
            streams.c.tenant == bindparam("tenant"),
            streams.c.category == bindparam("category"),
            streams.c.key == bindparam("key"),
        )
        .scalar_subquery()
    )
    version = events.c.version
    page = (
        select(*(events.c[name] for name in WHOLE))
        .where(
            events.c.stream_id == stream,
            version > bindparam("after_version", type_=BigInteger),
            version <= bindparam("to_version", type_=BigInteger),
        )
        .order_by(version.desc() if backwards else version)
        .limit(bindparam("limit", type_=BigInteger))
    )
    return _compiled(page)


@cache
def names_statement(schema: str, size: int) -> str:
    """Return what names streams and types: once for a page, not once for each of its events."""
    streams, types = event_tables(schema).streams, event_tables(schema).event_types
    of_streams = _sized(
        select(
            streams.c.id, streams.c.category, streams.c.key, streams.c.tenant, cast(null(), Integer)
        ),
        size,
    ).where(streams.c.id == any_(bindparam("streams", type_=ARRAY(BigInteger))))
    of_types = select(
        cast(types.c.id, BigInteger),
        types.c.name,
        cast(null(), Text),
        cast(null(), Text),
        types.c.schema_version,
    ).where(types.c.id == any_(bindparam("types", type_=ARRAY(Integer))))
    return _compiled(union_all(of_streams, of_types))


def size_of(position: int) -> int:
    """Return how large a log is that reaches to ``position``, for the functions above."""
    return position.bit_length()


def _sized(statement: Select[Any], size: int) -> Select[Any]:
    return statement.prefix_with(f"/* up to {2**size} events */")


def _in_range(position: ColumnElement[int]) -> tuple[ColumnElement[bool], ...]:
    return (
        position > bindparam("after", type_=BigInteger),
        position <= bindparam("end", type_=BigInteger),
    )


def _is_tagged(schema: str) -> tuple[ColumnElement[bool], ...]:
    tagged = event_tables(schema).tags
    return tagged.c.tenant == bindparam("tenant"), tagged.c.tag == bindparam("tag")


def _conditions(schema: str, shape: FilterShape) -> list[ColumnElement[bool]]:
    tables = event_tables(schema)
    events, streams, types = tables.all_events, tables.streams, tables.event_types
    conditions: list[ColumnElement[bool]] = []
    if shape.event_types:
        wanted = select(types.c.id).where(
            types.c.name == any_(bindparam("event_types", type_=ARRAY(Text)))
        )
        conditions.append(events.c.type_id == any_(func.array(wanted.scalar_subquery())))
    if shape.tags:
        conditions.append(events.c.tags.contains(bindparam("tags", type_=ARRAY(Text))))
    if shape.since:
        conditions.append(events.c.at >= bindparam("since", type_=_MOMENT))
    if shape.until:
        conditions.append(events.c.at < bindparam("until", type_=_MOMENT))
    its_stream: list[ColumnElement[bool]] = []
    if shape.categories:
        its_stream.append(streams.c.category == any_(bindparam("categories", type_=ARRAY(Text))))
    if shape.tenant and not shape.by_tag:
        its_stream.append(streams.c.tenant == bindparam("tenant"))
    if its_stream:
        fits = select(and_(*its_stream)).where(streams.c.id == events.c.stream_id)
        conditions.append(fits.correlate(events).scalar_subquery())
    return conditions


def _compiled(statement: Select[Any] | CompoundSelect[Any]) -> str:
    return str(statement.compile(dialect=_DIALECT))
