"""Any filter, in pages of any size, gives what filtering the whole log in Python would give."""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from datapatterns.event_sourcing import (
    ANY,
    START,
    Archive,
    EventStore,
    EventTypes,
    ImportedEvent,
    LogFilter,
    NewEvent,
    Position,
    RecordedEvent,
    StreamId,
    TypedLog,
    publish_mark,
)
from datapatterns.event_sourcing.log import reading

types = EventTypes()
store = EventStore(types=types)


@types.event("till.opened")
@dataclass(frozen=True)
class Opened:
    n: int


@types.event("item.scanned")
@dataclass(frozen=True)
class Scanned:
    n: int


@types.event("till.closed")
@dataclass(frozen=True)
class Closed:
    n: int


TYPES = ["till.opened", "item.scanned", "till.closed"]
CATEGORIES = ["till", "order"]
TENANTS = ["", "north", "süd"]
TAGS = ["course:c1", "course:c2", "student:ß", "rare"]
BEGIN = datetime(2024, 5, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Whole:
    """The whole log, and where it is."""

    engine: Engine = field(repr=False)
    events: list[RecordedEvent] = field(repr=False)


@pytest.fixture(scope="module")
def whole(module_engine: Engine) -> Whole:
    """A log of 400 events, some of them archived, with times that go back and forth."""
    chance = random.Random(7)  # noqa: S311 -- to be repeated, not to be secret
    with module_engine.begin() as conn:
        for n in range(60):
            stream = StreamId(chance.choice(CATEGORIES), str(n), chance.choice(TENANTS))
            store.append(conn, stream, [event(chance) for _ in range(5)], expected_version=ANY)
    with module_engine.connect() as conn:
        store.append(conn, StreamId("till", "undone"), [event(chance)], expected_version=ANY)
        conn.rollback()
    with module_engine.begin() as conn:
        for n in range(20):
            stream = StreamId(chance.choice(CATEGORIES), f"old {n}", chance.choice(TENANTS))
            at = BEGIN + timedelta(days=chance.randrange(10))
            chunk = [ImportedEvent(stream, event(chance), at) for _ in range(5)]
            store.import_events(conn, chunk, source="old", chunk=n)
    archive = Archive(store)
    with module_engine.begin() as conn:
        for n in range(0, 60, 3):
            found = conn.execute(
                text("SELECT category, tenant FROM datapatterns.stream WHERE key = :key"),
                {"key": str(n)},
            ).one()
            stream = StreamId(found.category, str(n), found.tenant)
            archive.stop(conn, stream)
            archive.move(conn, stream)
        assert conn.scalar(text("SELECT count(*) FROM datapatterns.event_archive"))
    with module_engine.begin() as conn:
        publish_mark(conn, store)
        return Whole(module_engine, store.read_log(conn, limit=1_000).events)


def event(chance: random.Random) -> NewEvent:
    tags = [tag for tag in TAGS[:3] if chance.random() < 0.4]
    tags += [TAGS[3]] * (chance.random() < 0.02)
    return NewEvent(chance.choice(TYPES), {"n": chance.randrange(100)}, tags=tuple(tags))


def choice(names: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from([*names, "no.such"]), max_size=3)


moments = st.integers(-1, 11).map(lambda day: BEGIN + timedelta(days=day)) | st.just(
    datetime(2100, 1, 1, tzinfo=UTC)
)
filters = st.builds(
    LogFilter,
    event_types=st.none() | choice(TYPES),
    categories=st.none() | choice(CATEGORIES),
    tags=choice(TAGS),
    tenant=st.none() | st.sampled_from([*TENANTS, "no such"]),
    since=st.none() | moments,
    until=st.none() | moments,
)


def matches(wanted: LogFilter, recorded: RecordedEvent) -> bool:
    return (
        (wanted.event_types is None or recorded.event_type in wanted.event_types)
        and (wanted.categories is None or recorded.stream.category in wanted.categories)
        and (wanted.tenant is None or recorded.stream.tenant == wanted.tenant)
        and set(wanted.tags) <= set(recorded.tags)
        and (wanted.since is None or recorded.recorded_at >= wanted.since)
        and (wanted.until is None or recorded.recorded_at < wanted.until)
    )


@given(
    wanted=filters,
    limit=st.integers(1, 40),
    scanned=st.integers(1, 60),
    start=st.floats(0, 1),
    published=st.booleans(),
)
def test_any_filter_in_pages_of_any_size_and_reach(
    whole: Whole,
    wanted: LogFilter,
    limit: int,
    scanned: int,
    start: float,
    *,
    published: bool,
) -> None:
    after = Position(int(start * whole.events[-1].position))
    level = "SERIALIZABLE" if published else "READ COMMITTED"
    expected = [e for e in whole.events if e.position > after and matches(wanted, e)]

    seen: list[RecordedEvent] = []
    checkpoint, caught_up = after, False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_SCANNED_MIN", scanned)
        patch.setattr(reading, "_SCANNED_PER_EVENT", 1)
        with whole.engine.connect().execution_options(isolation_level=level) as conn:
            while not caught_up:
                page = store.read_log(
                    conn, checkpoint, limit=limit, matching=wanted, published=published
                )
                assert len(page.events) <= limit
                assert page.checkpoint > checkpoint or page.caught_up
                assert all(checkpoint < e.position <= page.checkpoint for e in page.events)
                seen += page.events
                checkpoint, caught_up = page.checkpoint, page.caught_up

    assert seen == expected
    assert checkpoint >= whole.events[-1].position


@given(wanted=filters, limit=st.integers(1, 40))
def test_typed_pages_that_follow_each_other_hold_the_same(
    whole: Whole, wanted: LogFilter, limit: int
) -> None:
    seen: list[tuple[int, StreamId, int, object]] = []
    with whole.engine.connect() as conn:
        page = TypedLog(store).read(conn, START, limit=limit, matching=wanted)
        seen += [(e.position, e.stream, e.version, e.event) for e in page.events]
        while not page.caught_up:
            page = TypedLog(store).read(conn, page, limit=limit, matching=wanted)
            seen += [(e.position, e.stream, e.version, e.event) for e in page.events]

    assert seen == [
        (e.position, e.stream, e.version, *store.decode(e))
        for e in whole.events
        if matches(wanted, e)
    ]
