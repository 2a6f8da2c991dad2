"""A locked stream keeps other writers out, whether or not it exists."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from datapatterns.errors import StreamArchivedError, VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    Archive,
    EventStore,
    ImportedEvent,
    NewEvent,
    StreamEvents,
    StreamId,
)
from datapatterns.event_sourcing.commands.stream_lock import lock_stream
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.tills import Scanned, Till, types

store = EventStore(types=types)
TILL = StreamId("till", "7", "acme")


def by_version(engine: Engine) -> None:
    with engine.begin() as conn:
        store.append(conn, TILL, [Scanned(1, 1)], expected_version=NEW_STREAM)


def by_any(engine: Engine) -> None:
    with engine.begin() as conn:
        store.append(conn, TILL, [Scanned(1, 1)], expected_version=ANY)


def with_others(engine: Engine) -> None:
    with engine.begin() as conn:
        store.append_to_streams(conn, [StreamEvents(TILL, [Scanned(1, 1)], ANY)])


def by_import(engine: Engine) -> None:
    event = ImportedEvent(TILL, Scanned(1, 1))
    with engine.begin() as conn:
        store.import_events(conn, [event], source="file", chunk=1)


def by_lock(engine: Engine) -> None:
    with engine.begin() as conn:
        lock_stream(conn, TILL, schema="datapatterns")
        store.append(conn, TILL, [Scanned(1, 1)], expected_version=ANY)


WAYS = [by_version, by_any, with_others, by_import, by_lock]


@pytest.mark.parametrize("way", WAYS)
def test_whoever_begins_a_locked_stream_waits_and_comes_second(
    engine: Engine, way: Callable[[Engine], None]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as conn:
            assert lock_stream(conn, TILL, schema="datapatterns") == 0
            waiting = pool.submit(way, engine)
            until_blocked_by(engine, conn)
            store.append(conn, TILL, [Scanned(2, 2)], expected_version=NEW_STREAM)
        if way is by_version:
            with pytest.raises(VersionConflictError):
                waiting.result(30)
        else:
            waiting.result(30)

    with engine.begin() as conn:
        events = [event.data["product"] for event in store.read_stream(conn, TILL)]
    assert events == ([2] if way is by_version else [2, 1])


@pytest.mark.parametrize("way", WAYS)
def test_a_lock_that_led_to_nothing_leaves_nothing(
    engine: Engine, way: Callable[[Engine], None]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as conn:
            lock_stream(conn, TILL, schema="datapatterns")
            waiting = pool.submit(way, engine)
            until_blocked_by(engine, conn)
            assert store.list_keys(conn, Till, tenant="acme") == []
        waiting.result(30)

    with engine.begin() as conn:
        assert [event.version for event in store.read_stream(conn, TILL)] == [1]


def test_a_lock_is_lost_with_its_savepoint_and_may_be_taken_twice(engine: Engine) -> None:
    with engine.begin() as conn:
        savepoint = conn.begin_nested()
        lock_stream(conn, TILL, schema="datapatterns")
        savepoint.rollback()
        by_any(engine)  # does not wait
        assert lock_stream(conn, TILL, schema="datapatterns") == 1
        assert lock_stream(conn, TILL, schema="datapatterns") == 1


def test_a_stopped_stream_cannot_be_locked(engine: Engine) -> None:
    by_any(engine)
    with engine.begin() as conn:
        Archive(store).stop(conn, TILL)
    with engine.begin() as conn, pytest.raises(StreamArchivedError):
        lock_stream(conn, TILL, schema="datapatterns")


def test_a_lock_draws_no_position_and_holds_no_reader_back(engine: Engine) -> None:
    with engine.begin() as other:
        store.append(other, StreamId("till", "8"), [NewEvent("a.b", {})], expected_version=ANY)
    with engine.begin() as conn:
        before = conn.scalar(text("SELECT last_value FROM datapatterns.event_position"))
        lock_stream(conn, TILL, schema="datapatterns")
        lock_stream(conn, StreamId("till", "8"), schema="datapatterns")
        assert conn.scalar(text("SELECT last_value FROM datapatterns.event_position")) == before
        with engine.begin() as reader:
            assert len(store.read_log(reader).events) == 1
            assert store.blockers(reader) == []
