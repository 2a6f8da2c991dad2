"""When snapshots are written, which one a load begins with, and when none will do."""

import logging
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from psycopg import Cursor
from sqlalchemy import Connection, Engine, event, text

from datapatterns.errors import (
    AggregateError,
    EventGapError,
    EventTypeError,
)
from datapatterns.event_sourcing import (
    NEW_STREAM,
    Aggregate,
    EventStore,
    NewEvent,
    StreamId,
    applies,
)
from datapatterns.sql.migrating import upgrade
from tests.fixtures.baskets import Basket, Line, Scanned, filled, replayed, state, store, types


def rows_of(conn: Connection, *, version: int | None = None, at: datetime | None = None) -> int:
    """Return how many states and events a load of the basket fetches."""
    fetched: list[int] = []

    def count(_: object, cursor: Cursor[object], *__: object) -> None:
        fetched.append(cursor.rowcount)

    event.listen(conn, "after_cursor_execute", count)
    try:
        store.load(conn, Basket, "7", version=version, at=at)
    finally:
        event.remove(conn, "after_cursor_execute", count)
    return sum(fetched) - 2  # the stream, and its one type of event


def test_all_of_it_works_in_a_schema_of_another_name(engine: Engine) -> None:
    other = EventStore(schema="till", types=types)
    with engine.begin() as conn:
        upgrade(conn, schema="till")
        basket = other.load(conn, Basket, "7")
        basket.scan(1)
        other.save(conn, basket)

        assert other.save_snapshot(conn, basket)
        assert other.load(conn, Basket, "7").total == 5
        assert store.load(conn, Basket, "7").version == 0


def test_a_load_begins_at_the_latest_snapshot(conn: Connection) -> None:
    basket = filled(conn, 20)
    assert store.save_snapshot(conn, basket)
    filled(conn, 5)

    assert rows_of(conn) == 6
    loaded = store.load(conn, Basket, "7")
    assert state(loaded) == state(replayed(conn, 25))
    assert loaded.lines[0] == Line(0, 9)


def test_snapshots_are_written_when_due_and_never_by_themselves(conn: Connection) -> None:
    written = []
    for _ in range(5):
        filled(conn, 4)
        written.append(store.snapshot_if_due(conn, store.load(conn, Basket, "7")))

    assert written == [False, False, True, False, False]
    assert conn.scalar(text("SELECT array_agg(version) FROM datapatterns.snapshot")) == [12]


def test_the_past_is_answered_by_version_and_by_time(engine: Engine) -> None:
    times = []
    for _ in range(6):
        with engine.begin() as conn:
            filled(conn, 5)
            basket = store.load(conn, Basket, "7")
            if basket.version in {10, 20}:
                store.save_snapshot(conn, basket)
            [latest] = store.read_stream(conn, basket.stream, limit=1, backwards=True)
            times.append(latest.recorded_at)

    with engine.begin() as conn:
        for version in range(31):
            assert state(store.load(conn, Basket, "7", version=version)) == state(
                replayed(conn, version) if version else Basket("7")
            )
        for n, at in enumerate(times, start=1):
            assert store.load(conn, Basket, "7", at=at).version == 5 * n
            before = at - timedelta(microseconds=1)
            assert store.load(conn, Basket, "7", at=before).version == 5 * (n - 1)
        assert store.load(conn, Basket, "7", at=times[-1], version=12).version == 12
        assert rows_of(conn, version=12) == 3
        assert rows_of(conn, at=times[1]) == 1


def test_questions_without_an_answer_are_refused(conn: Connection) -> None:
    filled(conn, 3)

    with pytest.raises(ValueError, match="at version 3, not yet at 4"):
        store.load(conn, Basket, "7", version=4)
    with pytest.raises(ValueError, match="time zone"):
        store.load(conn, Basket, "7", at=datetime(2026, 1, 1))  # noqa: DTZ001 -- the point
    with pytest.raises(ValueError, match="no version"):
        store.load(conn, Basket, "7", version=-1)


def test_a_state_whose_events_were_rolled_back_leaves_no_snapshot(engine: Engine) -> None:
    with engine.connect() as conn:
        basket = filled(conn, 2)
        conn.rollback()
    with engine.begin() as conn:
        assert not store.save_snapshot(conn, basket)
        filled(conn, 2)
        assert not store.save_snapshot(conn, basket)
        assert not store.save_snapshot(conn, Basket("none"))


def test_only_the_newest_snapshots_are_kept(conn: Connection) -> None:
    for _ in range(5):
        filled(conn, 2)
        store.save_snapshot(conn, store.load(conn, Basket, "7"), keep=2)
    filled(conn, 2, key="other")
    store.save_snapshot(conn, store.load(conn, Basket, "other"), keep=2)

    kept = conn.execute(text("SELECT version FROM datapatterns.snapshot ORDER BY 1")).scalars()
    assert list(kept) == [2, 8, 10]


def test_a_snapshot_that_exists_is_not_new(conn: Connection) -> None:
    basket = filled(conn, 2)

    assert store.save_snapshot(conn, basket)
    assert not store.save_snapshot(conn, basket)


def test_unsaved_events_do_not_get_into_a_snapshot(conn: Connection) -> None:
    basket = filled(conn, 2)
    basket.scan(1)

    with pytest.raises(ValueError, match="unsaved"):
        store.save_snapshot(conn, basket)
    with pytest.raises(ValueError, match="keep at least 1"):
        store.save_snapshot(conn, filled(conn, 1, "other"), keep=0)


@pytest.mark.parametrize(
    "damage",
    [
        'UPDATE datapatterns.snapshot SET state = \'{"total": "x"}\'',
        "UPDATE datapatterns.snapshot SET state = '[]'",
        "UPDATE datapatterns.snapshot SET version = 99",
        "UPDATE datapatterns.snapshot SET position = 99",
    ],
)
def test_a_snapshot_that_cannot_be_used_is_ignored_and_logged(
    conn: Connection, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store.save_snapshot(conn, filled(conn, 6))
    conn.execute(text(damage))

    with caplog.at_level(logging.WARNING, logger="datapatterns.event_sourcing.states.loading"):
        loaded = store.load(conn, Basket, "7")

    assert state(loaded) == state(replayed(conn, 6))
    assert "snapshot ignored" in caplog.text


def test_a_snapshot_of_an_event_whose_place_another_took_after_a_restore_is_ignored(
    conn: Connection,
) -> None:
    store.save_snapshot(conn, filled(conn, 6))
    conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER USER"))
    # The tables of events are a day older; what was appended since got the same positions.
    conn.execute(
        text(
            "UPDATE datapatterns.event SET at = at + interval '1 day',"
            """ data = '{"product": 1, "cents": 100}' WHERE version = 6"""
        )
    )

    loaded = store.load(conn, Basket, "7")

    assert state(loaded) == state(replayed(conn, 6))
    assert loaded.total == 110


def test_a_missing_event_is_corruption(conn: Connection) -> None:
    filled(conn, 5)
    conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER moves_only"))
    conn.execute(text("DELETE FROM datapatterns.event WHERE version = 3"))

    with pytest.raises(EventGapError) as gap:
        store.load(conn, Basket, "7")

    assert gap.value.version == 3


def test_an_aggregate_without_a_policy_has_no_snapshots(conn: Connection) -> None:
    class Plain(Aggregate, category="basket"):
        anything = object()

        @applies
        def _(self, e: Scanned) -> None: ...

    plain = store.load(conn, Plain, "7")

    assert not store.snapshot_if_due(conn, plain)
    with pytest.raises(AggregateError, match="no snapshot policy"):
        store.save_snapshot(conn, plain)


def test_an_event_of_an_unknown_type_stops_the_load(conn: Connection) -> None:
    unknown = NewEvent("who.knows", {}, event_id=uuid4())
    store.append(conn, StreamId("basket", "7"), [unknown], expected_version=NEW_STREAM)

    with pytest.raises(EventTypeError, match=r"who\.knows"):
        store.load(conn, Basket, "7")
