"""The events of a range of the log as something to select from, and what is asked of a range."""

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    SelectBase,
    Subquery,
    Text,
    any_,
    bindparam,
    cast,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from datapatterns.event_sourcing.schema import event_tables

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own

AFTER: Final = "range_after"
END: Final = "range_end"
TYPES: Final = "range_types"
MASK: Final = "range_mask"
SHARD: Final = "range_shard"
NAMES: Final = "range_names"
LIMIT: Final = "range_limit"
GIVEN: Final = "events_given"


@cache
def events_of_range(schema: str, *, split: bool) -> Subquery:
    """Return the events that a statement selects from; which range, its parameters say.

    The joins are outer ones and by primary keys, so the planner leaves out those whose columns a
    statement does not use. By OFFSET 0 it looks at the data once for each event, and of no other
    event than these.

    Args:
        schema: Where the events are.
        split: Whether only those of one segment, told by their streams.
    """
    tables = event_tables(schema)
    events, streams, types = tables.all_events, tables.streams, tables.event_types
    return (
        select(
            events.c.position,
            streams.c.tenant,
            streams.c.category,
            streams.c.key,
            events.c.version,
            types.c.name.label("event_type"),
            types.c.schema_version,
            _readable(events).label("data"),
            events.c.meta.label("metadata"),
            events.c.at.label("recorded_at"),
            events.c.event_id,
            events.c.tags,
        )
        .select_from(
            events.outerjoin(streams, streams.c.id == events.c.stream_id).outerjoin(
                types, types.c.id == events.c.type_id
            )
        )
        .where(*_in_range(events, split=split), events.c.type_id == any_(_types()))
        .offset(literal_column("0"))
        .subquery("events")
    )


@cache
def types_statement(schema: str) -> str:
    """Return what lists the types of events that are stored under given names."""
    types = event_tables(schema).event_types
    named = types.c.name == any_(bindparam(NAMES, type_=ARRAY(Text)))
    return _compiled(select(types.c.id, types.c.name, types.c.schema_version).where(named))


@cache
def survey_statement(schema: str, *, split: bool) -> str:
    """Return what counts the next events, and tells where the last of them is."""
    events = event_tables(schema).all_events
    page = (
        select(events.c.position)
        .where(*_in_range(events, split=split), events.c.type_id == any_(_types()))
        .order_by(events.c.position)
        .limit(bindparam(LIMIT, type_=BigInteger))
        .subquery("page")
    )
    return _compiled(select(func.count(), func.max(page.c.position)))


@cache
def first_statement(schema: str, *, split: bool) -> str:
    """Return what finds the first event of a range, and what it is called."""
    tables = event_tables(schema)
    events, types = tables.all_events, tables.event_types
    return _compiled(
        select(events.c.position, types.c.name, types.c.id)
        .join_from(events, types, types.c.id == events.c.type_id)
        .where(*_in_range(events, split=split), events.c.type_id == any_(_types()))
        .order_by(events.c.position)
        .limit(literal_column("1"))
    )


@cache
def places_statement(schema: str, *, split: bool) -> str:
    """Return what lists the events of a range: position, name and codec."""
    tables = event_tables(schema)
    events, types = tables.all_events, tables.event_types
    return _compiled(
        select(events.c.position, types.c.name, events.c.codec)
        .join_from(events, types, types.c.id == events.c.type_id)
        .where(*_in_range(events, split=split), events.c.type_id == any_(_types()))
        .order_by(events.c.position)
    )


def _readable(events: FromClause) -> ColumnElement[Any]:
    # What a codec has packed is no JSON, so a statement that looks at it fails. NULL would only
    # give wrong sums; and to ask for each range whether there is any costs a tenth of it.
    packed = func.concat("codec ", events.c.codec, " at ", events.c.position, type_=Text)
    return func.coalesce(events.c.data, cast(packed, JSON), type_=JSON)


def _types() -> ColumnElement[Any]:
    return bindparam(TYPES, type_=ARRAY(Integer))


def _in_range(events: FromClause, *, split: bool) -> list[ColumnElement[bool]]:
    wanted: list[ColumnElement[bool]] = [
        events.c.position > bindparam(AFTER, type_=BigInteger),
        events.c.position <= bindparam(END, type_=BigInteger),
    ]
    if split:
        hashed = events.c.stream_id.op("&")(bindparam(MASK, type_=BigInteger))
        wanted.append(hashed == bindparam(SHARD, type_=BigInteger))
    return wanted


def _compiled(statement: SelectBase) -> str:
    return str(statement.compile(dialect=_DIALECT))
