"""The events of a range of the log as something to select from, and what is asked of a range."""

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Subquery,
    Text,
    any_,
    bindparam,
    func,
    literal_column,
    select,
)
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


@cache
def events_of_range(schema: str, *, split: bool) -> Subquery:
    """Return the events that a statement selects from; which range, its parameters say.

    The joins are outer ones and by primary keys, so the planner leaves out those whose columns a
    statement does not use.

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
            events.c.data,
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
        .subquery("events")
    )


@cache
def survey_statement(schema: str, *, split: bool) -> str:
    """Return what counts the next events by type, with where they begin and end.

    Also where the first of each type is that is not stored as plain JSON.
    """
    tables = event_tables(schema)
    events, types = tables.all_events, tables.event_types
    named = select(types.c.id).where(types.c.name == any_(bindparam(NAMES, type_=ARRAY(Text))))
    page = (
        select(events.c.position, events.c.type_id, events.c.codec)
        .where(
            *_in_range(events, split=split),
            events.c.type_id == any_(func.array(named.scalar_subquery())),
        )
        .order_by(events.c.position)
        .limit(bindparam(LIMIT, type_=BigInteger))
        .subquery("page")
    )
    of_types = (
        select(
            page.c.type_id,
            func.count().label("events"),
            func.min(page.c.position).label("first"),
            func.max(page.c.position).label("last"),
            func.min(page.c.position)
            .filter(page.c.codec > literal_column("0"))
            .label("first_coded"),
        )
        .group_by(page.c.type_id)
        .subquery("of_types")
    )
    return _compiled(
        select(types.c.name, types.c.schema_version, *of_types.c).join_from(
            of_types, types, types.c.id == of_types.c.type_id
        )
    )


@cache
def places_statement(schema: str, *, split: bool) -> str:
    """Return what lists the events of a range: their positions, and what they are called."""
    tables = event_tables(schema)
    events, types = tables.all_events, tables.event_types
    return _compiled(
        select(events.c.position, types.c.name)
        .join_from(events, types, types.c.id == events.c.type_id)
        .where(*_in_range(events, split=split), events.c.type_id == any_(_types()))
        .order_by(events.c.position)
    )


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


def _compiled(statement: Select[Any]) -> str:
    return str(statement.compile(dialect=_DIALECT))
