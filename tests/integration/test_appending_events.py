from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    EXISTS,
    NEW_STREAM,
    EventStore,
    Expected,
    NewEvent,
    StreamId,
)
from datapatterns.sql.migrating import upgrade
from tests.fixtures.carts import CART, ItemAdded, added, drawn, store, types
from tests.fixtures.colours import Call


def test_what_was_appended_is_read_back(call: Call) -> None:
    events = [ItemAdded("ëgg", 6), NewEvent("cart.sent", {"to": None}, metadata={"by": "ann"})]

    appended = call(
        store.append, CART, events, expected_version=NEW_STREAM, metadata={"by": "bob", "at": 3}
    )
    stream = call(store.read_stream, CART)
    page = call(store.read_log)

    assert appended.version == 2
    assert page.events == stream
    assert page.checkpoint == appended.position == stream[-1].position
    assert page.caught_up
    assert store.decode(stream[0]) == [ItemAdded("ëgg", 6)]
    assert (stream[1].data, stream[1].metadata) == ({"to": None}, {"by": "ann", "at": 3})
    assert call(store.blockers) == []


def test_the_same_holds_in_a_schema_of_another_name(engine: Engine) -> None:
    other = EventStore(schema="ledger_2", types=types)

    with engine.begin() as conn:
        upgrade(conn, schema="ledger_2")
        here = other.append(conn, CART, added(2), expected_version=NEW_STREAM)
        store.append(conn, CART, added(1), expected_version=NEW_STREAM)

    with engine.begin() as conn:
        assert other.read_log(conn).events == other.read_stream(conn, CART)
        assert other.high_water_mark(conn) == here.position == 2
        assert [e.version for e in store.read_log(conn).events] == [1]


def test_a_stream_is_read_in_pages_and_backwards(conn: Connection) -> None:
    store.append(conn, CART, added(5), expected_version=NEW_STREAM)

    page = store.read_stream(conn, CART, after_version=1, limit=2)
    back = store.read_stream(conn, CART, limit=2, backwards=True)

    assert [event.version for event in page] == [2, 3]
    assert [event.version for event in back] == [5, 4]
    assert store.read_stream(conn, StreamId("cart", "no such")) == []


@pytest.mark.parametrize(
    ("stored", "expected"), [(2, NEW_STREAM), (2, 1), (2, 3), (0, 1), (0, EXISTS)]
)
def test_a_conflict_leaves_the_transaction_usable_and_draws_no_position(
    conn: Connection, stored: int, expected: int | Expected
) -> None:
    if stored:
        store.append(conn, CART, added(stored), expected_version=NEW_STREAM)
    before = drawn(conn)

    with pytest.raises(VersionConflictError) as conflict:
        store.append(conn, CART, added(2), expected_version=expected)

    assert conflict.value.found == stored
    assert drawn(conn) == before
    assert len(store.read_stream(conn, CART)) == stored
    store.append(conn, CART, added(), expected_version=stored)


@pytest.mark.parametrize("expected", [2, ANY, EXISTS])
def test_an_append_to_a_stream_as_expected_extends_it(
    conn: Connection, expected: int | Expected
) -> None:
    store.append(conn, CART, added(2), expected_version=ANY)

    appended = store.append(conn, CART, added(3), expected_version=expected)

    assert appended.version == 5
    assert [event.version for event in store.read_stream(conn, CART)] == [1, 2, 3, 4, 5]


def test_a_retry_with_the_same_ids_is_recognised_even_when_the_stream_moved_on(
    call: Call,
) -> None:
    first = added(2)
    original = call(store.append, CART, first, expected_version=NEW_STREAM)
    call(store.append, CART, added(3), expected_version=2)

    again = call(store.append, CART, first, expected_version=NEW_STREAM)

    assert again.repeated
    assert (again.version, again.position) == (original.version, original.position)
    assert len(call(store.read_stream, CART)) == 5


def test_a_retry_that_is_only_partly_the_same_is_a_conflict(conn: Connection) -> None:
    first = added(2)
    store.append(conn, CART, first, expected_version=NEW_STREAM)

    for other in (first[:1] + added(1), [*first, *added(1)], first[::-1]):
        with pytest.raises(VersionConflictError):
            store.append(conn, CART, other, expected_version=NEW_STREAM)


def test_of_many_concurrent_appends_at_one_version_exactly_one_wins(engine: Engine) -> None:
    writers = 8
    barrier = Barrier(writers, timeout=30)

    def write(_: int) -> bool:
        with engine.connect() as conn:
            barrier.wait()
            try:
                store.append(conn, CART, added(2), expected_version=NEW_STREAM)
            except VersionConflictError:
                return False
            conn.commit()
            return True

    with ThreadPoolExecutor(writers) as pool:
        won = sum(pool.map(write, range(writers)))

    with engine.begin() as conn:
        assert won == 1
        assert len(store.read_stream(conn, CART)) == drawn(conn) == 2


def test_concurrent_appends_that_expect_nothing_all_land(engine: Engine) -> None:
    writers = 8
    barrier = Barrier(writers, timeout=30)

    def write(_: int) -> None:
        with engine.begin() as conn:
            barrier.wait()
            store.append(conn, CART, added(3), expected_version=ANY)

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))

    with engine.begin() as conn:
        stream = store.read_stream(conn, CART)
        assert [event.version for event in stream] == list(range(1, 3 * writers + 1))
        assert store.read_log(conn).events == stream
        times = [event.recorded_at for event in stream]
        assert times == sorted(times)


def test_time_never_goes_back_inside_a_stream(conn: Connection) -> None:
    store.append(conn, CART, added(), expected_version=NEW_STREAM)
    conn.execute(text("UPDATE datapatterns.stream SET last_at = now() + interval '1 hour'"))

    for expected in (1, ANY):
        store.append(conn, CART, added(), expected_version=expected)

    first, *later = [event.recorded_at for event in store.read_stream(conn, CART)]
    assert later == [conn.scalar(text("SELECT last_at FROM datapatterns.stream"))] * 2
    assert first < later[0]


def test_several_appends_share_a_transaction_and_a_savepoint_takes_back_its_own(
    engine: Engine,
) -> None:
    with engine.begin() as conn:
        store.append(conn, StreamId("cart", "a"), added(), expected_version=NEW_STREAM)
        with conn.begin_nested() as savepoint:
            store.append(conn, StreamId("cart", "b"), added(2), expected_version=NEW_STREAM)
            savepoint.rollback()
        store.append(conn, StreamId("cart", "a"), added(), expected_version=1)
        store.append(conn, StreamId("cart", "c"), added(), expected_version=NEW_STREAM)

    with engine.begin() as conn:
        events = store.read_log(conn).events
    assert [(event.stream.key, event.version) for event in events] == [
        ("a", 1),
        ("a", 2),
        ("c", 1),
    ]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_race_in_an_older_snapshot_is_a_serialization_failure(engine: Engine, level: str) -> None:
    with engine.begin() as conn:
        store.append(conn, CART, added(), expected_version=NEW_STREAM)

    with engine.connect().execution_options(isolation_level=level) as old:
        old.execute(text("SELECT 1"))
        with engine.begin() as conn:
            store.append(conn, CART, added(), expected_version=1)

        with pytest.raises(DBAPIError) as failure:
            store.append(old, CART, added(), expected_version=1)

    assert getattr(failure.value.orig, "sqlstate", None) == "40001"


def test_writers_of_a_new_type_do_not_wait_for_the_first_of_them(engine: Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        for n, conn in enumerate((first, second)):
            conn.execute(text("SET LOCAL lock_timeout = '5s'"))
            stream = StreamId("cart", str(n))
            store.append(conn, stream, [NewEvent("new.type", {})], expected_version=NEW_STREAM)
        second.commit()
        first.rollback()

    with engine.begin() as conn:
        [event] = store.read_log(conn, event_types=["new.type"]).events
        assert event.stream.key == "1"


def test_an_append_whose_session_was_killed_is_made_up_for_by_a_retry(engine: Engine) -> None:
    events = added(2)
    killed = create_engine(engine.url)
    with killed.connect() as conn:
        store.append(conn, CART, events, expected_version=NEW_STREAM)
        pid = conn.scalar(text("SELECT pg_backend_pid()"))
        with engine.begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        with pytest.raises(DBAPIError):
            conn.commit()
    killed.dispose()

    with engine.begin() as conn:
        again = store.append(conn, CART, events, expected_version=NEW_STREAM)

    assert not again.repeated
    with engine.begin() as conn:
        assert [e.event_id for e in store.read_log(conn).events] == [e.event_id for e in events]


def test_positions_beyond_32_bits_keep_their_order(engine: Engine) -> None:
    start = 2**31 - 3
    with engine.begin() as conn:
        conn.execute(text("SELECT setval('datapatterns.event_position', :n)"), {"n": start})

    with engine.connect() as slow, engine.connect() as conn:
        store.append(slow, StreamId("cart", "slow"), added(), expected_version=NEW_STREAM)
        for key in range(5):
            store.append(conn, StreamId("cart", str(key)), added(2), expected_version=NEW_STREAM)
        conn.commit()
        store.append(conn, StreamId("cart", "beyond"), added(), expected_version=NEW_STREAM)
        with engine.begin() as reader:
            assert store.high_water_mark(reader) == start
        slow.commit()
        with engine.begin() as reader:
            assert store.high_water_mark(reader) == start + 11
        conn.commit()

    with engine.begin() as conn:
        assert store.high_water_mark(conn) == start + 12
        assert len(store.read_log(conn).events) == 12


def test_ids_of_several_kinds_of_text_come_back(conn: Connection) -> None:
    for key in ("ключ", "a/b-c", "x" * 500, "'; --", "%s {} :x", str(uuid4())):
        stream = StreamId("cart", key, tenant="tenänt")
        store.append(conn, stream, added(), expected_version=NEW_STREAM)

        assert store.read_stream(conn, stream)[0].stream == stream


def test_a_loser_leaves_no_type_behind(conn: Connection) -> None:
    with pytest.raises(VersionConflictError):
        store.append(conn, CART, [NewEvent("never.stored", {})], expected_version=3)

    assert conn.scalar(text("SELECT count(*) FROM datapatterns.event_type")) == 0


@pytest.mark.parametrize("schema", ["till_", "__till", "opts", "plpgsql"])
def test_a_schema_may_have_any_name_that_is_allowed(engine: Engine, schema: str) -> None:
    other = EventStore(schema=schema, types=types)
    with engine.begin() as conn:
        upgrade(conn, schema=schema)
        other.append(conn, CART, added(), expected_version=NEW_STREAM)
    with engine.begin() as conn:
        assert len(other.read_log(conn).events) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_a_trigger_that_appends_does_not_move_what_is_answered(
    conn: Connection, count: int
) -> None:
    conn.execute(
        text(
            "CREATE FUNCTION echo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF pg_trigger_depth() = 1 THEN PERFORM datapatterns.append_events('', 'echo', 'e',"
            " NULL, NULL, 'a.b 1', NULL, gen_random_uuid()::text, '{}', NULL); END IF;"
            " RETURN NULL; END $$;"
            "CREATE TRIGGER echo AFTER INSERT ON datapatterns.event"
            " FOR EACH ROW EXECUTE FUNCTION echo()"
        )
    )
    appended = store.append(conn, CART, added(count), expected_version=NEW_STREAM)

    assert store.read_stream(conn, CART)[-1].position == appended.position
    assert len(store.read_stream(conn, StreamId("echo", "e"))) == count


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_other_encodings_of_a_client_change_nothing(engine: Engine, encoding: str) -> None:
    stream = StreamId("cart", "é")
    with engine.connect() as conn:
        conn.exec_driver_sql(f"SET client_encoding TO {encoding}")
        conn.commit()
        event = NewEvent("item.added", {"name": "é"}, tags=("é",))
        assert store.append(conn, stream, [event], expected_version=NEW_STREAM).version == 1
        with pytest.raises(VersionConflictError):
            store.append(conn, stream, [added()[0]], expected_version=NEW_STREAM)
        conn.commit()
        conn.invalidate()
    with engine.begin() as conn:
        [read] = store.read_stream(conn, stream)
        assert (read.data, read.tags) == ({"name": "é"}, ("é",))
