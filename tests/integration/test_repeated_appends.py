"""An append that is sent twice takes place once, also where no version is expected."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from threading import Barrier
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import EventIdsReusedError, StreamArchivedError, VersionConflictError
from datapatterns.event_sourcing import (
    ANY,
    EXISTS,
    NEW_STREAM,
    EventStore,
    Expected,
    NewEvent,
    StreamEvents,
    StreamId,
)
from datapatterns.event_sourcing.appending.forgetting import forget_append_requests
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.colours import Call

store = EventStore()
CART = StreamId("cart", "7")


def added(count: int = 1) -> list[NewEvent]:
    return [NewEvent("item.added", {"quantity": n}) for n in range(count)]


def ids(count: int = 1) -> list[UUID]:
    return [uuid4() for _ in range(count)]


def requests(conn: Connection) -> int:
    return int(conn.scalar(text("SELECT count(*) FROM datapatterns.append_request")))


@pytest.mark.parametrize("expected", [ANY, EXISTS])
def test_a_repetition_that_expects_no_version_is_recognised_by_its_ids(
    call: Call, expected: Expected
) -> None:
    call(store.append, CART, added(), expected_version=NEW_STREAM)
    given = ids(2)
    append = partial(store.append, stream=CART, expected_version=expected, event_ids=given)
    first = call(append, events=added(2))
    call(store.append, CART, added(), expected_version=ANY)

    again = call(append, events=added(2))

    assert (first.repeated, again.repeated) == (False, True)
    assert (again.version, again.position) == (first.version, first.position)
    assert len(call(store.read_stream, CART)) == 4


def test_without_given_ids_nothing_is_remembered(conn: Connection) -> None:
    events = added()
    for _ in range(2):
        store.append(conn, CART, events, expected_version=ANY)

    assert len(store.read_stream(conn, CART)) == 2
    assert requests(conn) == 0


def test_ids_that_were_given_to_other_events_are_refused(conn: Connection) -> None:
    given = ids(2)
    store.append(conn, CART, added(2), expected_version=ANY, event_ids=given)
    before = len(store.read_stream(conn, CART))

    reordered, overlapping = given[::-1], [given[1], *ids()]
    for other in ([given[0], *ids()], [*given, *ids()], reordered, overlapping, [*ids(), given[0]]):
        with pytest.raises(EventIdsReusedError, match="cart-7"):
            store.append(conn, CART, added(len(other)), expected_version=ANY, event_ids=other)

    assert len(store.read_stream(conn, CART)) == before
    store.append(conn, CART, added(), expected_version=before)


def test_a_part_of_an_append_that_is_sent_again_is_there_already(conn: Connection) -> None:
    given = ids(3)
    whole = store.append(conn, CART, added(3), expected_version=ANY, event_ids=given)

    for part, behind in ((given[:2], 1), (given[1:], 0), (given[1:2], 1)):
        again = store.append(conn, CART, added(len(part)), expected_version=ANY, event_ids=part)
        assert (again.repeated, again.version) == (True, whole.version - behind)

    assert len(store.read_stream(conn, CART)) == 3


def test_ids_must_be_one_for_each_event_and_differ(conn: Connection) -> None:
    one = uuid4()
    for given in ([], [one], [one, one], ids(3)):
        with pytest.raises(ValueError, match="ids"):
            store.append(conn, CART, added(2), expected_version=ANY, event_ids=given)


@pytest.mark.parametrize("begun", [0, 1])
def test_of_twins_in_flight_one_takes_place(engine: Engine, begun: int) -> None:
    for _ in range(begun):
        with engine.begin() as conn:
            store.append(conn, CART, added(), expected_version=NEW_STREAM)
    given = ids(2)
    twins = 6
    barrier = Barrier(twins, timeout=30)

    def send(_: int) -> bool:
        with engine.begin() as conn:
            barrier.wait()
            return store.append(
                conn, CART, added(2), expected_version=ANY, event_ids=given
            ).repeated

    with ThreadPoolExecutor(twins) as pool:
        repeated = list(pool.map(send, range(twins)))

    with engine.begin() as conn:
        versions = [event.version for event in store.read_stream(conn, CART)]
        assert versions == list(range(1, 3 + begun))
        assert conn.scalar(text("SELECT version FROM datapatterns.stream")) == 2 + begun
    assert sorted(repeated) == [False] + [True] * (twins - 1)


def test_ids_given_at_once_for_two_streams_are_refused_and_leave_nothing(engine: Engine) -> None:
    given = ids()

    def send(key: str) -> None:
        with engine.begin() as conn:
            store.append(
                conn, StreamId("cart", key), added(), expected_version=ANY, event_ids=given
            )

    with engine.connect() as conn:
        store.append(conn, CART, added(), expected_version=ANY, event_ids=given)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(send, "other")
            until_blocked_by(engine, conn)
            conn.commit()
            with pytest.raises(EventIdsReusedError):
                other.result(30)

    with engine.begin() as conn:
        assert conn.scalar(text("SELECT count(*) FROM datapatterns.stream")) == 1


def test_a_twin_that_waits_for_one_that_rolls_back_takes_its_place(engine: Engine) -> None:
    given = ids()

    def send() -> bool:
        with engine.begin() as conn:
            return store.append(conn, CART, added(), expected_version=ANY, event_ids=given).repeated

    with engine.connect() as conn:
        store.append(conn, CART, added(), expected_version=ANY, event_ids=given)
        with ThreadPoolExecutor(1) as pool:
            twin = pool.submit(send)
            until_blocked_by(engine, conn)
            conn.rollback()
            assert twin.result(30) is False


def test_what_a_savepoint_has_taken_back_is_no_repetition(conn: Connection) -> None:
    given = ids()
    append = partial(store.append, conn, CART, expected_version=ANY, event_ids=given)
    with conn.begin_nested() as savepoint:
        append(added())
        savepoint.rollback()

    assert not append(added()).repeated
    with conn.begin_nested():
        assert append(added()).repeated
    assert len(store.read_stream(conn, CART)) == 1


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_in_an_older_snapshot_a_twin_fails_to_serialize_and_a_repetition_is_known(
    engine: Engine, level: str
) -> None:
    given = ids()
    append = partial(store.append, stream=CART, expected_version=ANY, event_ids=given)
    with engine.connect().execution_options(isolation_level=level) as old:
        with old.begin():
            old.execute(text("SELECT 1"))
            with engine.begin() as conn:
                append(conn, events=added())
            with pytest.raises(DBAPIError) as failure:
                append(old, events=added())
            old.rollback()
        with old.begin():
            assert append(old, events=added()).repeated

    assert getattr(failure.value.orig, "sqlstate", None) == "40001"


def test_requests_are_forgotten_when_nobody_repeats_them_any_more(engine: Engine) -> None:
    given = [ids() for _ in range(3)]
    with engine.begin() as conn:
        for one in given:
            store.append(conn, CART, added(), expected_version=ANY, event_ids=one)

    with engine.begin() as conn:
        assert forget_append_requests(conn, store, older_than=timedelta(hours=1)) == 0
        conn.execute(
            text("UPDATE datapatterns.append_request SET recorded_at = now() - interval '2 hours'")
        )
        assert forget_append_requests(conn, store, older_than=timedelta(hours=1), limit=2) == 2
        assert forget_append_requests(conn, store, older_than=timedelta(hours=1), limit=2) == 1
        assert requests(conn) == 0
        for refused in (timedelta(0), timedelta(seconds=-1)):
            with pytest.raises(ValueError, match="older"):
                forget_append_requests(conn, store, older_than=refused)


# -- several streams -------------------------------------------------------------------------------


def drawn(conn: Connection) -> int:
    return int(conn.scalar(text("SELECT last_value FROM datapatterns.event_position")))


def batch(key: str, expected: int | Expected = NEW_STREAM, count: int = 1) -> StreamEvents:
    return StreamEvents(StreamId("cart", key), added(count), expected)


def test_several_streams_are_appended_to_in_one_round_trip(call: Call) -> None:
    batches = [
        batch("b", count=2),
        batch("a"),
        StreamEvents(
            StreamId("door", "n", "tenant"),
            [NewEvent("opened", {}, tags=("floor:1",)), NewEvent("closed", {}, 2)],
            ANY,
            metadata={"by": "ann"},
        ),
    ]

    done = call(store.append_to_streams, batches)

    log = call(store.read_log).events
    assert [(e.stream.key, e.version, e.event_type) for e in log] == [
        ("a", 1, "item.added"),
        ("b", 1, "item.added"),
        ("b", 2, "item.added"),
        ("n", 1, "opened"),
        ("n", 2, "closed"),
    ]
    assert {stream.key: a.version for stream, a in done.items()} == {"a": 1, "b": 2, "n": 2}
    assert max(appended.position for appended in done.values()) == log[-1].position
    assert log[-1].metadata == {"by": "ann"}
    assert all(again.repeated for again in call(store.append_to_streams, batches[:2]).values())


@pytest.mark.parametrize("wrong", [batch("c", 1), batch("c", EXISTS), batch("a", NEW_STREAM)])
def test_if_one_stream_is_not_as_expected_none_is_appended_to(
    conn: Connection, wrong: StreamEvents
) -> None:
    store.append(conn, StreamId("cart", "a"), added(), expected_version=NEW_STREAM)
    before = drawn(conn)

    with pytest.raises(VersionConflictError) as conflict:
        store.append_to_streams(conn, [batch("b"), wrong, batch("d", ANY)])

    assert conflict.value.stream == str(wrong.stream)
    assert drawn(conn) == before
    assert len(store.read_stream(conn, StreamId("cart", "a"))) == 1
    assert store.read_stream(conn, StreamId("cart", "b")) == []
    store.append_to_streams(conn, [batch("b"), batch("d", ANY)])


def test_an_archived_stream_is_named_and_nothing_is_appended(conn: Connection) -> None:
    given = ids()
    keyed = StreamEvents(StreamId("cart", "a"), added(), ANY, event_ids=given)
    store.append_to_streams(conn, [keyed])
    conn.execute(text("UPDATE datapatterns.stream SET archived_at = now()"))

    with pytest.raises(StreamArchivedError) as refusal:
        store.append_to_streams(conn, [batch("b"), batch("a", ANY)])

    assert refusal.value.stream == "cart-a"
    assert store.read_stream(conn, StreamId("cart", "b")) == []
    done = store.append_to_streams(conn, [batch("b"), keyed])
    assert done[StreamId("cart", "a")].repeated
    with pytest.raises(StreamArchivedError):
        store.append(conn, StreamId("cart", "a"), added(), expected_version=ANY)


def test_no_streams_or_one_twice_are_refused(conn: Connection) -> None:
    with pytest.raises(ValueError, match="nothing to append"):
        store.append_to_streams(conn, [])
    with pytest.raises(ValueError, match="nothing to append"):
        store.append_to_streams(conn, [batch("a", count=0)])
    with pytest.raises(ValueError, match="twice"):
        store.append_to_streams(conn, [batch("a"), batch("b"), batch("a", ANY)])
    with pytest.raises(ValueError, match="too many for one append"):
        store.append_to_streams(conn, [batch(str(n), count=1_000) for n in range(11)])

    assert not conn.in_transaction()


def test_the_same_ids_for_two_streams_take_everything_back(conn: Connection) -> None:
    given = ids()
    twice = [
        StreamEvents(StreamId("cart", key), added(), ANY, event_ids=given) for key in ("a", "b")
    ]

    with pytest.raises(EventIdsReusedError):
        store.append_to_streams(conn, twice)

    assert conn.scalar(text("SELECT count(*) FROM datapatterns.event")) == 0


def test_many_units_over_the_same_streams_never_wait_for_each_other_in_a_circle(
    engine: Engine,
) -> None:
    writers, rounds = 6, 20
    barrier = Barrier(writers, timeout=30)
    keys = [str(n) for n in range(rounds + 4)]

    def write(number: int) -> None:
        for start in range(rounds):
            some = keys[start : start + 5]  # the last of them is new
            barrier.wait()
            with engine.begin() as conn:
                wanted = [batch(key, ANY) for key in (some if number % 2 else some[::-1])]
                store.append_to_streams(conn, wanted)

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))

    with engine.begin() as conn:
        assert len(store.read_stream(conn, StreamId("cart", keys[9]))) == 5 * writers
        assert drawn(conn) == 5 * rounds * writers


def test_a_unit_in_an_older_snapshot_fails_to_serialize(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as old:
        old.execute(text("SELECT 1"))
        with engine.begin() as conn:
            store.append_to_streams(conn, [batch("a"), batch("b")])
        with pytest.raises(DBAPIError) as failure:
            store.append_to_streams(old, [batch("c", ANY), batch("b", ANY)])

    assert getattr(failure.value.orig, "sqlstate", None) == "40001"
