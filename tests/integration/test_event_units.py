# ruff: noqa: PT012 -- what is undone takes more than one statement
"""Units of work: what was collected is appended last, and only if the transaction commits."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from datapatterns.errors import (
    ConditionConflictError,
    IsolationLevelError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    Condition,
    NewEvent,
    Tagged,
    Unit,
)
from tests.fixtures.event_units import (
    A,
    B,
    Base,
    C,
    Customer,
    Till,
    added,
    customers,
    keys,
    log,
    store,
    watch,
)


def test_appends_come_last_sorted_in_one_round_trip(engine: Engine, session: Session) -> None:
    sent = watch(engine)
    unit = store.unit(session)

    unit.append(C, added(), expected_version=NEW_STREAM)
    unit.append(A, added(2), expected_version=NEW_STREAM)
    session.add(Customer(id=1))
    unit.append(B, added(), expected_version=ANY)
    assert unit.appended == {}
    session.commit()

    assert sent == ["INSERT", "append", "COMMIT"]
    events = log(engine)
    assert [e.stream.key for e in events] == ["a", "a", "b", "c"]
    assert unit.position == events[-1].position
    assert unit.appended[A].version == 2


def test_a_session_has_one_unit_and_goes_on_with_it(engine: Engine, session: Session) -> None:
    with store.unit(session) as unit:
        unit.append(A, added(), expected_version=NEW_STREAM)
        session.commit()
        unit.append(A, added(), expected_version=1)
        session.commit()
    assert store.unit(session) is unit

    session.commit()
    session.add(Customer(id=1))
    session.commit()

    assert keys(engine) == ["a", "a"]
    assert unit.appended == {}


def test_a_rollback_or_a_close_takes_back_everything(engine: Engine, session: Session) -> None:
    unit = store.unit(session)
    for end in (session.rollback, session.close, session.reset):
        session.add(Customer(id=1))
        unit.append(A, added(), expected_version=NEW_STREAM)
        end()
        unit.append(A, added(), expected_version=NEW_STREAM)
        end()
        session.commit()
    unit.append(B, added(), expected_version=NEW_STREAM)
    with pytest.raises(KeyError), session.begin_nested():
        raise KeyError
    session.commit()

    assert keys(engine) == ["b"]
    assert customers(engine) == []


def test_a_failed_flush_at_the_end_appends_nothing(engine: Engine, session: Session) -> None:
    session.add(Customer(id=1))
    session.commit()
    session.expunge_all()
    unit = store.unit(session)
    unit.append(A, added(), expected_version=NEW_STREAM)
    session.add(Customer(id=1))

    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()
    session.commit()

    assert keys(engine) == []


def test_after_a_conflict_no_second_commit_goes_through(engine: Engine, session: Session) -> None:
    with engine.begin() as conn:
        store.append(conn, A, added(), expected_version=NEW_STREAM)
    unit = store.unit(session)
    session.add(Customer(id=1))
    unit.append(A, added(), expected_version=NEW_STREAM)
    unit.append(B, added(), expected_version=NEW_STREAM)

    for _ in range(2):
        with pytest.raises(VersionConflictError):
            session.commit()
    session.rollback()
    session.commit()

    assert keys(engine) == ["a"]
    assert customers(engine) == []
    unit.append(B, added(), expected_version=NEW_STREAM)
    session.commit()
    assert keys(engine) == ["a", "b"]


def test_a_session_of_two_phases_appends_before_it_prepares(engine: Engine) -> None:
    with engine.connect() as conn:
        if conn.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("this server has no prepared transactions")
    Base.metadata.create_all(engine)
    with Session(engine, twophase=True) as session:
        unit = store.unit(session)
        unit.append(A, added(), expected_version=NEW_STREAM)
        session.add(Customer(id=1))
        session.prepare()
        session.commit()
        unit.append(A, added(), expected_version=1)
        session.commit()
        unit.append(A, added(), expected_version=2)
        session.prepare()
        session.rollback()

    assert keys(engine) == ["a", "a"]


def test_a_session_with_several_engines_says_which_has_the_events(engine: Engine) -> None:
    other = create_engine(engine.url)
    Base.metadata.create_all(engine)
    with Session(binds={Customer: other}) as session:
        store.unit(session, bind=engine).append(A, added(), expected_version=NEW_STREAM)
        session.add(Customer(id=1))
        session.commit()
    other.dispose()

    assert keys(engine) == ["a"]
    assert customers(engine) == [1]


def test_autocommit_is_refused_and_nothing_is_appended(engine: Engine) -> None:
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        store.unit(session).append(A, added(), expected_version=NEW_STREAM)
        with pytest.raises(IsolationLevelError):
            session.commit()
        session.rollback()

    assert keys(engine) == []


def test_a_race_in_an_older_snapshot_fails_to_serialize(engine: Engine) -> None:
    with engine.begin() as conn:
        store.append(conn, A, added(), expected_version=NEW_STREAM)
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        unit = store.unit(session)
        session.execute(text("SELECT 1"))
        unit.append(A, added(), expected_version=1)
        with engine.begin() as conn:
            store.append(conn, A, added(), expected_version=1)
        with pytest.raises(DBAPIError) as failure:
            session.commit()
        session.rollback()
        unit.append(A, added(), expected_version=2)
        session.commit()

    assert getattr(failure.value.orig, "sqlstate", None) == "40001"
    assert keys(engine) == ["a"] * 3


def test_an_async_session_does_the_same(engine: Engine) -> None:
    Base.metadata.create_all(engine)

    async def run() -> Unit:
        async_engine = create_async_engine(engine.url)
        async with AsyncSession(async_engine) as session:
            unit = store.unit(session)
            unit.append(A, added(), expected_version=NEW_STREAM)
            session.add(Customer(id=1))
            with pytest.raises(KeyError):
                async with session.begin_nested():
                    unit.append(B, added(), expected_version=NEW_STREAM)
                    raise KeyError
            till = await session.run_sync(lambda _: unit.load(Till, "1"))
            till.pay(5)
            await session.commit()
            unit.append(C, added(), expected_version=NEW_STREAM)
        await async_engine.dispose()
        return unit

    unit = asyncio.run(run())

    assert keys(engine) == ["a", "1"]
    assert unit.position == log(engine)[-1].position


def test_units_over_the_same_streams_in_any_order_do_not_deadlock(engine: Engine) -> None:
    writers = 6
    barrier = Barrier(writers, timeout=30)

    def work(number: int) -> None:
        for _ in range(8):
            barrier.wait()
            with Session(engine) as session:
                unit = store.unit(session)
                for stream in (A, B, C) if number % 2 else (C, B, A):
                    unit.append(stream, added(), expected_version=ANY)
                session.commit()

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(work, range(writers)))

    assert len(log(engine)) == 3 * 8 * writers


def test_a_condition_is_about_all_that_a_unit_appends(engine: Engine, session: Session) -> None:
    tagged = NewEvent("item.added", {}, tags=("cart:1",))
    page = store.read_tagged(session.connection(), Tagged(("cart:1",)))
    assert page.condition is not None
    unit = store.unit(session)
    unit.unless(page.condition)
    unit.unless(page.condition)
    with pytest.raises(ValueError, match="one condition"):
        unit.unless(Condition(Tagged(("cart:2",)) | Tagged(("cart:3",)), page.checkpoint))
    unit.append(B, [tagged], expected_version=NEW_STREAM)  # its own doesn't count
    unit.load(Till, "7").pay(1)
    session.commit()
    assert keys(engine) == ["b", "7"]

    unit.unless(page.condition)
    unit.append(A, added(), expected_version=NEW_STREAM)
    with pytest.raises(ConditionConflictError):
        session.commit()
    session.rollback()
    assert keys(engine) == ["b", "7"]

    savepoint = session.begin_nested()
    unit.unless(page.condition)
    savepoint.rollback()
    unit.append(A, added(), expected_version=NEW_STREAM)
    session.commit()
    assert keys(engine) == ["b", "7", "a"]
