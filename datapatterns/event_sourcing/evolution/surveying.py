"""Ask a database which types of events it holds, and try events of each, before a deployment."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, Select, bindparam, func, select

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing.events import VERSION_MAX, Position, StreamId
from datapatterns.event_sourcing.evolution.checking import (
    EventCheck,
    Sample,
    StoredType,
    judge_handlers,
    judge_types,
    try_events,
)
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.states.subjects import Subject, event_classes, subject_name
from datapatterns.event_sourcing.store import EventStore

REACH: Final = 1_000_000
"""How many positions from each end of the log are looked at, unless asked otherwise."""


def check_events(  # noqa: PLR0913 -- what to look at, each by name
    conn: Connection,
    store: EventStore,
    *,
    count_events: bool = False,
    sample: int = 0,
    aggregates: Iterable[Subject] = (),
    handled: Mapping[str, Iterable[type]] | None = None,
    reach: int = REACH,
) -> EventCheck:
    """Return whether this code can read what is stored; deploy it only if it can.

    The types alone cost next to nothing, however many events there are: the database keeps a list
    of every name and version that was ever stored. It says that a way leads to a class of today,
    not that upcasters do what they should; for that, let it try some events.

    Args:
        conn: A connection that may read the tables of events. Nothing is written.
        store: Where to look, with the types of events that this code knows.
        count_events: Say how many events of each type there are; reads all of the log.
        sample: How many of the newest and of the oldest events of each type to read and decode,
            those in the archive among them.
        aggregates: Classes, or deciders, that must have a handler for each event in the streams
            of their category.
        handled: The same for anything else: the events that it handles, by category.
        reach: Look for events to try, and for types in streams, only so many positions from the
            end of the log, and from its beginning. What is not met there is not tried; the report
            names it.

    Raises:
        AggregateError: An aggregate has no category, or a decider does not name its events.
        ValueError: ``sample`` is negative, or ``reach`` is not positive.
    """
    if sample < 0 or reach < 1:
        raise ValueError("nothing is no sample; look at 0 events or more, within a reach above 0")
    handlers = _handlers(aggregates, handled or {})
    types = judge_types(_stored_types(conn, store.schema, count_events=count_events), store.types)
    met, tried, misread = try_events(
        _samples(conn, store.schema, each=sample, reach=reach) if sample else (),
        lambda one: _read(conn, store, one),
    )
    untried = [one for one in types if (one.event_type, one.schema_version) not in met]
    return EventCheck(
        types,
        misread,
        judge_handlers(handlers, _occurring(conn, store, handlers, reach), store.types),
        tried,
        tuple(untried) if sample else (),
    )


def _handlers(
    aggregates: Iterable[Subject], handled: Mapping[str, Iterable[type]]
) -> dict[tuple[str, str], Iterable[type]]:
    handlers: dict[tuple[str, str], Iterable[type]] = {}
    for subject in aggregates:
        classes = event_classes(subject)
        if not classes:
            raise AggregateError(
                subject_name(subject),
                "names no event that it handles; annotate evolve, or give events=(...)",
            )
        handlers[subject_name(subject), subject("any").stream.category] = classes
    for category, others in handled.items():
        handlers[f"what handles {category}", category] = tuple(others)
    return handlers


def _stored_types(conn: Connection, schema: str, *, count_events: bool) -> set[StoredType]:
    tables = event_tables(schema)
    names, events = tables.event_types, tables.all_events
    stored = conn.execute(select(names.c.id, names.c.name, names.c.schema_version)).all()
    counts: dict[int, int] = {}
    if count_events:
        counted = select(events.c.type_id, func.count()).group_by(events.c.type_id)
        counts = {row[0]: row[1] for row in conn.execute(counted)}
    # Two transactions that stored a type for the first time may each have listed it.
    totals: dict[tuple[str, int], int] = {}
    for id_, name, version in stored:
        totals[name, version] = totals.get((name, version), 0) + counts.get(id_, 0)
    return {
        StoredType(name, version, count if count_events else None)
        for (name, version), count in totals.items()
    }


def _samples(conn: Connection, schema: str, *, each: int, reach: int) -> Iterator[Sample]:
    first, last = _ends(conn, schema)
    seen = set[int]()
    for low, high, newest in (
        (last - reach, VERSION_MAX, True),
        (0, first + reach, False),
    ):
        page = {"low": low, "high": high, "each": each}
        for row in conn.execute(_sample_statement(schema, newest=newest), page).all():
            position, version, category, key, tenant, name, schema_version = row
            if position not in seen:
                seen.add(position)
                yield Sample(
                    name,
                    schema_version,
                    StreamId(category, key, tenant),
                    version,
                    Position(position),
                )


def _read(conn: Connection, store: EventStore, sample: Sample) -> list[object] | None:
    found = store.read_stream(
        conn, sample.stream, after_version=sample.version - 1, limit=1, backwards=False
    )
    if not found or found[0].version != sample.version:
        return None
    return store.decode(found[0])


def _occurring(
    conn: Connection,
    store: EventStore,
    handlers: Mapping[tuple[str, str], Iterable[type]],
    reach: int,
) -> list[tuple[str, str, int]]:
    categories = sorted({category for _, category in handlers})
    if not categories:
        return []
    first, last = _ends(conn, store.schema)
    tables = event_tables(store.schema)
    events, streams, names = tables.all_events, tables.streams, tables.event_types
    pairs = (
        select(events.c.stream_id, events.c.type_id)
        .where((events.c.position > last - reach) | (events.c.position <= first + reach))
        .distinct()
        .subquery("pairs")
    )
    found = conn.execute(
        select(streams.c.category, names.c.name, names.c.schema_version)
        .select_from(
            pairs.join(streams, streams.c.id == pairs.c.stream_id).join(
                names, names.c.id == pairs.c.type_id
            )
        )
        .where(streams.c.category.in_(categories))
        .distinct()
    )
    return [(category, name, version) for category, name, version in found]


def _ends(conn: Connection, schema: str) -> tuple[int, int]:
    position = event_tables(schema).all_events.c.position
    first, last = conn.execute(select(func.min(position), func.max(position))).one()
    return first or 0, last or 0


@cache
def _sample_statement(schema: str, *, newest: bool) -> Select[Any]:
    tables = event_tables(schema)
    events, streams, names = tables.all_events, tables.streams, tables.event_types
    order = events.c.position.desc() if newest else events.c.position
    ranked = (
        select(
            events.c.position,
            events.c.version,
            events.c.stream_id,
            events.c.type_id,
            func.row_number().over(partition_by=events.c.type_id, order_by=order).label("place"),
        )
        .where(
            events.c.position > bindparam("low", type_=BigInteger),
            events.c.position <= bindparam("high", type_=BigInteger),
        )
        .subquery("ranked")
    )
    return (
        select(
            ranked.c.position,
            ranked.c.version,
            streams.c.category,
            streams.c.key,
            streams.c.tenant,
            names.c.name,
            names.c.schema_version,
        )
        .select_from(
            ranked.join(streams, streams.c.id == ranked.c.stream_id).join(
                names, names.c.id == ranked.c.type_id
            )
        )
        .where(ranked.c.place <= bindparam("each", type_=BigInteger))
        .order_by(ranked.c.position)
    )
