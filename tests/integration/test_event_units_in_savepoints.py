# ruff: noqa: PT012 -- what is undone takes more than one statement
"""Savepoints take back of a unit of work what came since they began, in sessions and in blocks."""

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from datapatterns.errors import (
    AggregateError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    NEW_STREAM,
    StreamId,
)
from tests.fixtures.event_units import (
    A,
    B,
    C,
    Customer,
    Till,
    added,
    customers,
    keys,
    store,
    watch,
)


def test_a_savepoint_takes_back_its_own_only(engine: Engine, session: Session) -> None:
    unit = store.unit(session)

    def undone(key: str) -> None:
        with pytest.raises(KeyError), session.begin_nested():
            unit.append(StreamId("cart", key), added(), expected_version=NEW_STREAM)
            raise KeyError

    unit.append(A, added(), expected_version=NEW_STREAM)
    undone("x")
    with session.begin_nested():
        unit.append(B, added(), expected_version=NEW_STREAM)
        undone("y")
        with session.begin_nested():
            unit.append(C, added(), expected_version=NEW_STREAM)
    with session.begin_nested() as savepoint:
        unit.append(A, added(), expected_version=1)
        savepoint.rollback()
    session.add(Customer(id=1))
    session.commit()

    assert keys(engine) == ["a", "b", "c"]


def test_a_failed_flush_in_a_savepoint_decides_nothing(engine: Engine, session: Session) -> None:
    unit = store.unit(session)
    session.add(Customer(id=1))
    session.flush()
    session.expunge_all()
    unit.append(A, added(), expected_version=NEW_STREAM)
    with pytest.raises(IntegrityError), session.begin_nested():
        unit.append(B, added(), expected_version=NEW_STREAM)
        session.add(Customer(id=1))
    session.commit()

    assert keys(engine) == ["a"]


def test_other_hooks_may_use_savepoints_and_write(engine: Engine, session: Session) -> None:
    unit = store.unit(session)

    @event.listens_for(session, "before_commit")
    def audit(session: Session) -> None:
        if not session.in_nested_transaction():
            with session.begin_nested():
                session.add(Customer(id=7))

    unit.append(A, added(), expected_version=NEW_STREAM)
    session.commit()

    assert keys(engine) == ["a"]
    assert customers(engine) == [7]


def test_an_aggregate_that_emitted_in_a_savepoint_that_was_undone_is_refused(
    engine: Engine, session: Session
) -> None:
    unit = store.unit(session)
    till = unit.load(Till, "1")
    till.pay(1)
    with pytest.raises(KeyError), session.begin_nested():
        till.pay(2)
        unit.load(Till, "2").pay(3)
        raise KeyError

    for _ in range(2):
        with pytest.raises(AggregateError, match="savepoint"):
            session.commit()
    session.rollback()

    assert keys(engine) == []


def test_savepoints_of_a_block_take_back_their_own(engine: Engine) -> None:
    with engine.begin() as conn, store.unit(conn) as unit:
        unit.append(A, added(), expected_version=NEW_STREAM)
        outer = conn.begin_nested()
        unit.append(B, added(), expected_version=NEW_STREAM)
        inner = conn.begin_nested()
        unit.append(C, added(), expected_version=NEW_STREAM)
        inner.rollback()
        with conn.begin_nested():
            unit.append(C, added(), expected_version=NEW_STREAM)
        outer.commit()
        last = conn.begin_nested()
        unit.append(A, added(), expected_version=1)
        last.rollback()

    assert keys(engine) == ["a", "b", "c"]


def test_a_unit_that_is_made_in_a_savepoint_goes_with_it(engine: Engine, session: Session) -> None:
    outer = session.begin_nested()
    session.begin_nested()
    store.unit(session).append(A, added(), expected_version=NEW_STREAM)
    outer.rollback()
    store.unit(session).append(B, added(), expected_version=NEW_STREAM)
    session.commit()

    assert keys(engine) == ["b"]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("known", [False, True])
def test_a_commit_around_open_savepoints_appends(
    engine: Engine,
    session: Session,
    depth: int,
    known: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    root = session.begin()
    if known:
        store.unit(session).append(C, added(), expected_version=NEW_STREAM)
    for _ in range(depth):
        session.begin_nested()
    store.unit(session).append(A, added(), expected_version=NEW_STREAM)
    session.add(Customer(id=1))
    root.commit()

    assert keys(engine) == (["a", "c"] if known else ["a"])
    assert customers(engine) == [1]
    assert store.unit(session).appended[A].version == 1


def test_a_commit_around_open_savepoints_that_conflicts_commits_nothing(
    engine: Engine, session: Session
) -> None:
    root = session.begin()
    session.add(Customer(id=1))
    session.begin_nested()
    store.unit(session).append(A, added(), expected_version=5)
    with pytest.raises(VersionConflictError):
        root.commit()
    session.rollback()

    assert (keys(engine), customers(engine)) == ([], [])


def test_a_savepoint_in_a_savepoint_that_is_committed_sends_nothing_yet(
    engine: Engine, session: Session
) -> None:
    sent = watch(engine)
    store.unit(session).append(A, added(), expected_version=NEW_STREAM)
    outer = session.begin_nested()
    session.begin_nested()
    outer.commit()
    assert "append" not in sent
    session.commit()

    assert keys(engine) == ["a"]


def test_a_block_in_a_savepoint_goes_with_it(engine: Engine) -> None:
    with engine.begin() as conn:
        savepoint = conn.begin_nested()
        with store.unit(conn) as unit:
            unit.append(A, added(), expected_version=NEW_STREAM)
            savepoint.rollback()
            unit.append(B, added(), expected_version=NEW_STREAM)

    assert keys(engine) == ["b"]


@pytest.mark.parametrize("back", ["rollback to q;", "ROLLBACK TO SAVEPOINT q"])
def test_savepoints_in_the_callers_own_words_count(engine: Engine, back: str) -> None:
    with engine.begin() as conn, store.unit(conn) as unit:
        conn.execute(text("savepoint p"))
        unit.append(A, added(), expected_version=NEW_STREAM)
        conn.execute(text("release p"))
        conn.execute(text("savepoint q"))
        unit.append(B, added(), expected_version=NEW_STREAM)
        conn.execute(text(back))

    assert keys(engine) == ["a"]
