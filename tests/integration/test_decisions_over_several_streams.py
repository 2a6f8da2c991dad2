"""One condition on tags for appends to several streams: all of them take place, or none."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.errors import (
    ConditionConflictError,
    IsolationLevelError,
)
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    Expected,
    StreamEvents,
    Tagged,
)
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.enrolments import COURSE, drawn, enrolled, store, stream


def both(*tags: str, expected: int | Expected = NEW_STREAM) -> list[StreamEvents]:
    ids = [[uuid4()], [uuid4()]]
    return [
        StreamEvents(stream(key), [enrolled(*tags)], expected, event_ids=event_ids)
        for key, event_ids in zip("12", ids, strict=True)
    ]


@pytest.mark.parametrize("expected", [NEW_STREAM, ANY])
def test_a_condition_is_about_several_streams_and_knows_its_retry(
    conn: Connection, expected: int | Expected
) -> None:
    condition = store.read_tagged(conn, COURSE).condition
    wanted = both("course:c1", expected=expected)

    first = store.append_to_streams(conn, wanted, unless=condition)
    again = store.append_to_streams(conn, wanted, unless=condition)
    before = drawn(conn)
    with pytest.raises(ConditionConflictError):
        store.append_to_streams(
            conn, [StreamEvents(stream("3"), [enrolled()], ANY), wanted[0]], unless=condition
        )

    assert [each.version for each in first.values()] == [1, 1]
    assert all(each.repeated for each in again.values())
    assert {s: a.position for s, a in again.items()} == {s: a.position for s, a in first.items()}
    assert store.read_stream(conn, stream("3")) == []
    assert drawn(conn) == before


def test_a_condition_on_several_streams_needs_one_tenant_and_read_committed(
    engine: Engine,
) -> None:
    with engine.begin() as conn:
        condition = store.read_tagged(conn, COURSE).condition
        wanted = [*both(), StreamEvents(stream("1", "acme"), [enrolled()], ANY)]
        with pytest.raises(ValueError, match="belongs to 'acme'"):
            store.append_to_streams(conn, wanted, unless=condition)
    older = engine.execution_options(isolation_level="REPEATABLE READ")
    with older.begin() as conn, pytest.raises(IsolationLevelError):
        store.append_to_streams(conn, both(), unless=condition)


def test_of_two_decisions_over_several_streams_one_holds(engine: Engine) -> None:
    with engine.begin() as conn:
        condition = store.read_tagged(conn, COURSE).condition
    ready = Barrier(4)

    def decide(key: str) -> bool:
        wanted = [
            StreamEvents(stream(f"{key}{n}"), [enrolled("course:c1")], NEW_STREAM) for n in range(2)
        ]
        ready.wait(30)
        try:
            with engine.begin() as conn:
                store.append_to_streams(conn, wanted, unless=condition)
        except ConditionConflictError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(decide, "abcd")) == 1
    with engine.begin() as conn:
        assert len(store.read_tagged(conn, COURSE).events) == 2


def test_many_tags_of_a_batch_are_counted_once(engine: Engine) -> None:
    """Counted twice, they would shut the gate while a stream is held, and deadlock."""
    with engine.begin() as conn:
        for key in "abcdefgh":
            store.append(conn, stream(key), [enrolled()], expected_version=NEW_STREAM)
        condition = store.read_tagged(conn, Tagged(("other",))).condition
    batch = [
        StreamEvents(stream(key), [enrolled(*(f"{key}{n}" for n in range(20)))], ANY)
        for key in "abcdefgh"
    ]

    def append_batch() -> None:
        with engine.begin() as conn:
            store.append_to_streams(conn, batch)

    def decide(conn: Connection) -> None:
        with conn.begin():
            store.append(conn, stream("a"), [enrolled()], expected_version=ANY, unless=condition)

    with (
        ThreadPoolExecutor(2) as pool,
        engine.connect() as holder,
        engine.connect() as watched,
    ):
        holder.execute(
            text("SELECT FROM datapatterns.stream WHERE key = 'h' FOR NO KEY UPDATE")
        ).all()
        batching = pool.submit(append_batch)
        until_blocked_by(engine, holder)
        deciding = pool.submit(decide, watched)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
            deadline = time.monotonic() + 30
            while looking.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")) < 2:
                assert time.monotonic() < deadline, "the decision does not wait"
        holder.rollback()
        batching.result(30)
        deciding.result(30)
    with engine.begin() as conn:
        assert [e.version for e in store.read_stream(conn, stream("a"))] == [1, 2, 3]
