from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from threading import Barrier

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from datapatterns.errors import EventDataError, ImportChunkError, IsolationLevelError
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    EventStore,
    EventTypes,
    ImportedEvent,
    NewEvent,
    StreamId,
    Tagged,
)
from datapatterns.sql.migrating import upgrade
from tests.fixtures.colours import Call

types = EventTypes()
store = EventStore(types=types)
BEGIN = datetime(2017, 1, 1, 12, tzinfo=UTC)


@types.event("item.sold")
@dataclass(frozen=True)
class Sold:
    text: str


def sold(key: str, count: int, *, at: datetime | None = None) -> list[ImportedEvent]:
    step = timedelta(seconds=1)
    return [
        ImportedEvent(StreamId("sale", key), Sold(f"{key} {n}"), at and at + n * step)
        for n in range(count)
    ]


def test_an_imported_chunk_reads_like_appended_events(call: Call) -> None:
    hard = 'tab\t newline\n quote" backslash\\ \\N \\. é \u2028'
    events = [
        *sold("b", 2, at=BEGIN),
        ImportedEvent(
            StreamId("sale", "a"), NewEvent("x", {"t": hard}, 3, metadata={"m": hard}), BEGIN
        ),
        *sold("b", 1, at=BEGIN + timedelta(hours=1)),
    ]

    assert call(store.import_events, events, source="till", chunk=1) == 4

    log = call(store.read_log).events
    assert [(e.stream.key, e.version) for e in log] == [("b", 1), ("b", 2), ("a", 1), ("b", 3)]
    assert (log[2].data, log[2].metadata, log[2].schema_version) == ({"t": hard}, {"m": hard}, 3)
    assert log[2].recorded_at == BEGIN
    assert store.decode(log[1]) == [Sold("b 1")]
    assert call(store.append, StreamId("sale", "b"), [Sold("new")], expected_version=3).version == 4


def test_a_chunk_that_was_imported_is_skipped(call: Call) -> None:
    for expected in (3, 0):
        assert call(store.import_events, sold("a", 3), source="till", chunk=1) == expected
    assert call(store.import_events, sold("c", 1), source="till", chunk=2) == 1
    assert call(store.import_events, sold("d", 1), source="other", chunk=1) == 1

    assert len(call(store.read_log).events) == 5


def test_a_chunk_of_that_number_with_other_events_is_refused(conn: Connection) -> None:
    store.import_events(conn, sold("a", 3), source="till", chunk=1)

    for other in (sold("a", 4), sold("b", 3), sold("a", 3, at=BEGIN)):
        with pytest.raises(ImportChunkError):
            store.import_events(conn, other, source="till", chunk=1)


def test_a_chunk_that_broke_off_is_imported_by_the_next_attempt(engine: Engine) -> None:
    with engine.connect() as conn:
        store.import_events(conn, sold("a", 3), source="till", chunk=1)
        conn.rollback()

    with engine.begin() as conn:
        assert store.import_events(conn, sold("a", 3), source="till", chunk=1) == 3
    with engine.begin() as conn:
        assert [event.version for event in store.read_log(conn).events] == [1, 2, 3]


def test_of_two_processes_with_the_same_chunk_one_imports_it(engine: Engine) -> None:
    barrier = Barrier(2, timeout=30)

    def run(_: int) -> int:
        with engine.begin() as conn:
            barrier.wait()
            return store.import_events(conn, sold("a", 50), source="till", chunk=1)

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(run, range(2))) == [0, 50]


def test_imports_and_appends_to_the_same_streams_do_not_lose_versions(engine: Engine) -> None:
    workers = 6
    barrier = Barrier(workers, timeout=30)

    def run(n: int) -> None:
        barrier.wait()
        for i in range(10):
            with engine.begin() as conn:
                if n % 2:
                    events = [e for key in ("c", "a", "b") for e in sold(key, 3)]
                    store.import_events(conn, events, source=str(n), chunk=i)
                else:
                    stream = StreamId("sale", "abc"[i % 3])
                    store.append(conn, stream, [Sold("x")] * 2, expected_version=ANY)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, range(workers)))

    with engine.begin() as conn:
        log = store.read_log(conn, limit=10_000).events
    assert len(log) == 3 * 10 * 9 + 3 * 10 * 2
    for key in "abc":
        versions = [event.version for event in log if event.stream.key == key]
        times = [event.recorded_at for event in log if event.stream.key == key]
        assert versions == list(range(1, len(versions) + 1))
        assert times == sorted(times)


def test_the_time_of_now_never_goes_back_inside_a_stream(conn: Connection) -> None:
    store.append(conn, StreamId("sale", "a"), [Sold("x")], expected_version=NEW_STREAM)
    conn.execute(text("UPDATE datapatterns.stream SET last_at = now() + interval '1 hour'"))

    store.import_events(conn, sold("a", 1), source="till", chunk=1)

    last_at = conn.scalar(text("SELECT last_at FROM datapatterns.stream"))
    assert store.read_stream(conn, StreamId("sale", "a"))[-1].recorded_at == last_at


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([], "empty"),
        (sold("a", 1) + sold("a", 1, at=BEGIN), "all or none"),
        (sold("a", 2, at=BEGIN)[::-1], "goes back in time"),
        (sold("a", 1, at=BEGIN - timedelta(days=1)), "cannot go back"),
        (sold("b", 1, at=datetime.now(UTC) + timedelta(days=1)), "future"),
        (sold("a", 1, at=datetime(2017, 1, 2)), "time zone"),  # noqa: DTZ001 -- the point
        (sold("b", 1) * 200_001, "too many"),
        (sold("b", 1, at=datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))), "so early"),
    ],
)
def test_what_cannot_be_imported_is_refused(
    conn: Connection, events: Sequence[ImportedEvent], reason: str
) -> None:
    store.import_events(conn, sold("a", 1, at=BEGIN), source="till", chunk=1)

    with pytest.raises(ValueError, match=reason):
        store.import_events(conn, events, source="till", chunk=2)


def test_data_that_cannot_be_stored_is_refused_before_anything_is_written(
    conn: Connection,
) -> None:
    bad = ImportedEvent(StreamId("sale", "a"), Sold("\0"))

    with pytest.raises(EventDataError):
        store.import_events(conn, [*sold("a", 1), bad], source="till", chunk=1)

    assert not conn.in_transaction()


@pytest.mark.parametrize("source", ["\0", "\ud800", "x" * 501])
def test_a_source_that_cannot_be_stored_is_refused(conn: Connection, source: str) -> None:
    with pytest.raises(ValueError, match="cannot name a source"):
        store.import_events(conn, sold("a", 1), source=source, chunk=1)

    assert not conn.in_transaction()


def test_a_connection_that_commits_by_itself_is_refused(engine: Engine) -> None:
    automatic = create_engine(engine.url, isolation_level="AUTOCOMMIT")

    with automatic.connect() as conn, pytest.raises(IsolationLevelError):
        store.import_events(conn, sold("a", 1), source="till", chunk=1)
    automatic.dispose()


def test_an_import_works_in_a_schema_of_another_name(engine: Engine) -> None:
    other = EventStore(schema="archive_9", types=types)
    with engine.begin() as conn:
        upgrade(conn, schema="archive_9")
        other.import_events(conn, sold("a", 3), source="till", chunk=1)

    with engine.begin() as conn:
        assert len(other.read_log(conn).events) == 3
        assert store.read_log(conn).events == []


def test_text_is_imported_where_the_session_speaks_another_encoding(engine: Engine) -> None:
    latin = create_engine(engine.url, connect_args={"client_encoding": "latin1"})
    new = NewEvent("x", {"name": "Süß"}, metadata={"by": "Änne"}, tags=("stadt:Köln",))
    with latin.begin() as conn:
        store.import_events(
            conn, [ImportedEvent(StreamId("sale", "é"), new)], source="till", chunk=1
        )
    latin.dispose()

    with engine.begin() as conn:
        [read] = store.read_log(conn).events
        tagged = store.read_tagged(conn, Tagged(("stadt:Köln",))).events
    assert (read.stream.key, read.data, read.metadata) == ("é", {"name": "Süß"}, {"by": "Änne"})
    assert [event.position for event in tagged] == [read.position]
