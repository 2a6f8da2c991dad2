"""Conditional appends: a decision holds only if nothing that it did not know of has happened."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Thread
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import (
    ConditionConflictError,
    EventTypeError,
    IsolationLevelError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    Condition,
    Position,
    Tagged,
    TagQuery,
)
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.colours import Call
from tests.fixtures.enrolments import COURSE, Enrolled, drawn, enrolled, store, stream


def test_an_append_under_a_condition_that_holds_takes_place(call: Call) -> None:
    page = call(store.read_tagged, COURSE)

    appended = call(
        store.append,
        stream(),
        [enrolled("course:c1", "student:s1")],
        expected_version=NEW_STREAM,
        unless=page.condition,
    )
    found = call(store.read_tagged, COURSE)

    assert page.events == []
    assert [event.position for event in found] == [appended.position]
    assert found.events[0].tags == ("course:c1", "student:s1")
    assert store.decode(found.events[0]) == [Enrolled("c1")]
    assert found.caught_up
    assert found.checkpoint == appended.position


def test_an_append_is_refused_if_something_that_matches_came_since(conn: Connection) -> None:
    page = store.read_tagged(conn, COURSE)
    store.append(conn, stream("other"), [enrolled("course:c1")], expected_version=ANY)
    before = drawn(conn)

    with pytest.raises(ConditionConflictError) as conflict:
        store.append(conn, stream(), [enrolled()], expected_version=ANY, unless=page.condition)

    assert conflict.value.stream == "enrolment-1"
    assert drawn(conn) == before
    assert store.read_stream(conn, stream()) == []
    store.append(conn, stream(), [enrolled()], expected_version=NEW_STREAM)


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        (Tagged(("a",)), True),
        (Tagged(("b", "a")), True),
        (Tagged(("a", "c")), False),
        (Tagged(("c",)), False),
        (Tagged(("c",)) | Tagged(("b",)), True),
        (Tagged(("a",), types=("student.enrolled",)), True),
        (Tagged(("a",), types=(Enrolled,)), True),
        (Tagged(("a",), types=("student.left", Enrolled)), True),
        (Tagged(("a",), types=("student.left",)), False),
        (Tagged(("a",), types=("student.left",)) | Tagged(("c",)), False),
    ],
)
def test_what_a_query_reads_is_what_a_condition_guards(
    conn: Connection,
    query: Tagged | TagQuery,
    matches: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    nothing = store.read_tagged(conn, query)
    store.append(conn, stream(), [enrolled("a", "b"), enrolled("d")], expected_version=NEW_STREAM)
    locked = store.read_tagged(conn, query, exclusively=True)

    assert [event.version for event in locked] == [1] * matches
    if matches:
        with pytest.raises(ConditionConflictError):
            store.append(conn, stream(), [enrolled()], expected_version=2, unless=nothing.condition)
    else:
        store.append(conn, stream(), [enrolled()], expected_version=2, unless=nothing.condition)


def test_an_event_that_matches_two_items_is_read_once_and_pages_go_on(engine: Engine) -> None:
    query = Tagged(("a",)) | Tagged(("b",)) | Tagged(("a", "b"))
    with engine.begin() as conn:
        events = [enrolled("a", "b"), enrolled("b"), enrolled("c"), enrolled("a"), enrolled("b")]
        store.append(conn, stream(), events, expected_version=NEW_STREAM)

    with engine.begin() as conn:
        first = store.read_tagged(conn, query, limit=2)
        second = store.read_tagged(conn, query, after=first.checkpoint, limit=3)
        third = store.read_tagged(conn, query, after=second.checkpoint)

        assert [event.version for event in first] == [1, 2]
        assert [event.version for event in second] == [4, 5]
        assert (first.caught_up, second.caught_up) == (False, True)
        assert (third.events, third.caught_up) == ([], True)
        with pytest.raises(ConditionConflictError):  # more follows than that page has
            store.append(conn, stream(), [enrolled()], expected_version=5, unless=first.condition)
        store.append(conn, stream(), [enrolled()], expected_version=5, unless=third.condition)


def test_tenants_do_not_see_each_others_tags(conn: Connection) -> None:
    ours = store.read_tagged(conn, COURSE, tenant="us")
    store.append(conn, stream(tenant="them"), [enrolled("course:c1")], expected_version=ANY)

    store.append(conn, stream(tenant="us"), [enrolled()], expected_version=0, unless=ours.condition)

    assert store.read_tagged(conn, COURSE, tenant="us", exclusively=True).events == []
    assert len(store.read_tagged(conn, COURSE, tenant="them", exclusively=True).events) == 1
    with pytest.raises(ValueError, match="tenant 'us'"):
        store.append(
            conn, stream(tenant="them"), [enrolled()], expected_version=1, unless=ours.condition
        )


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_older_snapshot_is_refused_and_the_transaction_stays_usable(
    engine: Engine, level: str
) -> None:
    condition = Condition(COURSE | COURSE, Position(0))

    with engine.connect().execution_options(isolation_level=level) as old, old.begin():
        with pytest.raises(IsolationLevelError):
            store.read_tagged(old, COURSE)
        with pytest.raises(IsolationLevelError):
            store.read_tagged(old, COURSE, exclusively=True)
        with pytest.raises(IsolationLevelError):
            store.append(old, stream(), [enrolled()], expected_version=0, unless=condition)
        store.append(old, stream(), [enrolled("course:c1")], expected_version=0)


def test_a_lock_that_would_be_gone_at_once_is_refused(engine: Engine) -> None:
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn,
        pytest.raises(IsolationLevelError),
    ):
        store.read_tagged(conn, COURSE, exclusively=True)


@pytest.mark.parametrize("expected", [NEW_STREAM, ANY])
def test_a_retry_is_recognised_although_its_own_events_match(call: Call, expected: int) -> None:
    page = call(store.read_tagged, COURSE)
    events = [enrolled("course:c1"), enrolled("student:s2")]
    append = partial(store.append, events=events, expected_version=expected, unless=page.condition)
    first = call(append, stream=stream())
    call(store.append, stream(), [enrolled("course:c1")], expected_version=2)

    again = call(append, stream=stream())

    assert again.repeated
    assert (again.version, again.position) == (first.version, first.position)
    with pytest.raises(ConditionConflictError):
        call(append, stream=stream("other"))


def test_a_retry_by_ids_is_recognised_although_it_matches_no_item(call: Call) -> None:
    page = call(store.read_tagged, COURSE)
    ids = [uuid4()]
    append = partial(
        store.append, stream=stream(), expected_version=ANY, event_ids=ids, unless=page.condition
    )
    call(append, events=[enrolled()])
    call(store.append, stream("other"), [enrolled("course:c1")], expected_version=ANY)

    assert call(append, events=[enrolled()]).repeated


def test_a_condition_does_not_hide_a_conflict_of_versions(conn: Connection) -> None:
    page = store.read_tagged(conn, COURSE)
    store.append(conn, stream(), [enrolled()], expected_version=NEW_STREAM)

    with pytest.raises(VersionConflictError):
        store.append(
            conn, stream(), [enrolled()], expected_version=NEW_STREAM, unless=page.condition
        )


def test_a_class_that_is_not_declared_is_refused_before_anything_is_sent(conn: Connection) -> None:
    condition = Condition(TagQuery((Tagged(("a",), types=(str,)),)), Position(0))

    with pytest.raises(EventTypeError):
        store.append(conn, stream(), [enrolled()], expected_version=0, unless=condition)

    assert not conn.in_transaction()


@pytest.mark.parametrize(
    "condition",
    [
        "[]",
        '[{"tags": []}]',
        '[{"types": ["a"]}]',
        '[{"tags": ["a"], "types": []}]',
        '[{"tags": ["a"], "types": null}]',
        '[{"tags": [null]}]',
        '[{"tags": ["a", 7]}]',
        '[{"tags": "a"}]',
        '[{"tags": ["a"], "kinds": ["b"]}]',
        '{"tags": ["a"]}',
        "null",
    ],
)
def test_the_database_refuses_conditions_that_would_guard_nothing(
    conn: Connection, condition: str
) -> None:
    statement = text(
        "SELECT * FROM datapatterns.append_events('', 'a', '1', 0, NULL, 'a 1', NULL,"
        " gen_random_uuid()::text, '{}', NULL, 0, NULL, false, CAST(:condition AS jsonb), 0)"
    )

    with pytest.raises(DBAPIError):
        conn.execute(statement, {"condition": condition})


def test_whoever_decides_exclusively_keeps_others_from_what_matches(engine: Engine) -> None:
    def append_beside(key: str, tag: str) -> None:
        with engine.begin() as other:
            store.append(other, stream(key), [enrolled(tag)], expected_version=ANY)

    with engine.connect() as conn:
        page = store.read_tagged(conn, COURSE, exclusively=True)
        append_beside("elsewhere", "course:c2")
        waiting = Thread(target=append_beside, args=("late", "course:c1"))
        waiting.start()
        until_blocked_by(engine, conn)
        store.append(conn, stream(), [enrolled("course:c1")], expected_version=NEW_STREAM)
        conn.commit()
        waiting.join(30)

    with engine.begin() as conn:
        order = [event.stream.key for event in store.read_tagged(conn, COURSE)]
    assert (page.events, page.condition) == ([], None)
    assert order == ["1", "late"]


def test_of_many_decisions_about_the_last_place_one_takes_place(engine: Engine) -> None:
    clients = 8
    barrier = Barrier(clients, timeout=30)

    def enrol(number: int) -> bool:
        with engine.connect() as conn:
            page = store.read_tagged(conn, COURSE)
            conn.commit()
            barrier.wait()
            event = enrolled("course:c1", f"student:{number}")
            try:
                store.append(
                    conn, stream(str(number)), [event], expected_version=0, unless=page.condition
                )
            except ConditionConflictError:
                return False
            conn.commit()
            return True

    with ThreadPoolExecutor(clients) as pool:
        assert sum(pool.map(enrol, range(clients))) == 1


def test_very_many_tags_need_few_locks_and_still_hold_conditions_back(engine: Engine) -> None:
    tags = [f"student:{n}" for n in range(600)]
    with engine.begin() as conn:
        page = store.read_tagged(conn, Tagged(("student:599",)))

    def decide() -> None:
        with engine.begin() as other:
            store.append(
                other, stream("x"), [enrolled()], expected_version=0, unless=page.condition
            )

    with engine.connect() as conn:
        for start in range(0, 600, 100):
            events = [enrolled(tag) for tag in tags[start : start + 100]]
            store.append(conn, stream(str(start)), events, expected_version=NEW_STREAM)
        locks = conn.scalar(
            text(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                " AND pid = pg_backend_pid()"
            )
        )
        with ThreadPoolExecutor(1) as pool:
            refused = pool.submit(decide)
            until_blocked_by(engine, conn)
            conn.commit()
            with pytest.raises(ConditionConflictError):
                refused.result(30)

    assert locks <= 201
