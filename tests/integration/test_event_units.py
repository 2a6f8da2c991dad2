# ruff: noqa: PT012 -- what is undone takes more than one statement
"""Units of work: what was collected is appended last, and only if the transaction commits."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

import pytest
from sqlalchemy import BigInteger, Connection, Engine, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datapatterns.errors import (
    AggregateError,
    ConditionConflictError,
    IsolationLevelError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    Aggregate,
    Condition,
    EventStore,
    EventTypes,
    NewEvent,
    RecordedEvent,
    StreamId,
    Tagged,
    Unit,
    applies,
)

types = EventTypes()
store = EventStore(types=types)
A, B, C = (StreamId("cart", key) for key in "abc")


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)


@types.event("till.paid")
@dataclass(frozen=True)
class Paid:
    cents: int


class Till(Aggregate, category="till"):
    cents = 0

    @applies
    def _(self, e: Paid) -> None:
        self.cents += e.cents

    def pay(self, cents: int) -> None:
        self.emit(Paid(cents))


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session


def added(count: int = 1) -> list[NewEvent]:
    return [NewEvent("item.added", {"n": n}) for n in range(count)]


def log(engine: Engine) -> list[RecordedEvent]:
    with engine.begin() as conn:
        return store.read_log(conn).events


def keys(engine: Engine) -> list[str]:
    return [event.stream.key for event in log(engine)]


def customers(engine: Engine) -> list[int]:
    with engine.begin() as conn:
        return list(conn.scalars(select(Customer.id).order_by(Customer.id)))


def watch(engine: Engine) -> list[str]:
    """Return what the engine sends from now on, in a word for each statement."""
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(
            "append" if "append_to_streams" in statement else statement.split(maxsplit=1)[0]
        )

    event.listen(engine, "commit", lambda _: sent.append("COMMIT"))
    return sent


# -- sessions --------------------------------------------------------------------------------------


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


# -- aggregates ------------------------------------------------------------------------------------


def test_an_aggregate_is_saved_with_what_it_emits_until_the_end(
    engine: Engine, session: Session
) -> None:
    unit = store.unit(session)
    till, other = unit.load(Till, "1"), Till("2")
    unit.save(other, metadata={"by": "ann"})
    till.pay(5)
    other.pay(7)
    assert unit.load(Till, "1") is till
    unit.load(Till, "idle")
    session.commit()

    assert [(e.stream.key, e.metadata) for e in log(engine)] == [("1", None), ("2", {"by": "ann"})]
    again = unit.load(Till, "1")
    assert (again.cents, again.version) == (5, 1)
    assert again is not till


def test_an_aggregate_that_was_saved_before_is_recognised(engine: Engine, session: Session) -> None:
    unit, till = store.unit(session), Till("1")
    till.pay(5)
    for _ in range(2):
        unit.save(till)
        session.commit()

    assert len(log(engine)) == 1
    assert unit.appended[till.stream].repeated


def test_a_stale_aggregate_is_a_conflict(engine: Engine, session: Session) -> None:
    unit = store.unit(session)
    till = unit.load(Till, "1")
    with engine.begin() as conn:
        other = store.load(conn, Till, "1")
        other.pay(1)
        store.save(conn, other)
    till.pay(5)

    with pytest.raises(VersionConflictError):
        session.commit()
    session.rollback()
    unit.load(Till, "1").pay(5)
    session.commit()

    with engine.begin() as conn:
        assert store.load(conn, Till, "1").cents == 6


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


def test_what_cannot_follow_in_one_unit_is_refused_at_once(session: Session) -> None:
    unit = store.unit(session)
    unit.append(A, added(2), expected_version=3)
    till = unit.load(Till, "1")
    unit.append(A, added(), expected_version=5)
    unit.append(A, added(), expected_version=ANY)
    unit.append(B, added(), expected_version=ANY)

    for refused, expected in ((A, 3), (A, 5), (B, 1), (till.stream, ANY)):
        with pytest.raises(ValueError, match="unit"):
            unit.append(refused, added(), expected_version=expected)
    with pytest.raises(ValueError, match="another object"):
        unit.save(Till("1"))
    with pytest.raises(ValueError, match="nothing to append"):
        unit.append(C, [], expected_version=ANY)


# -- blocks on a connection ------------------------------------------------------------------------


def test_a_block_on_a_connection_appends_at_its_end(engine: Engine) -> None:
    sent = watch(engine)
    with engine.begin() as conn:
        with store.unit(conn) as unit:
            unit.append(B, added(), expected_version=NEW_STREAM)
            unit.append(A, added(), expected_version=NEW_STREAM)
            unit.load(Till, "1").pay(5)
            sent.clear()
            conn.execute(text("CREATE TABLE customer (id bigint)"))
        assert unit.position is not None
        assert len(unit.appended) == 3

    assert sent == ["CREATE", "append", "COMMIT"]
    assert keys(engine) == ["a", "b", "1"]


def test_a_block_that_fails_appends_nothing(conn: Connection) -> None:
    with pytest.raises(KeyError), store.unit(conn) as unit:
        unit.append(A, added(), expected_version=NEW_STREAM)
        raise KeyError
    with store.unit(conn) as unit:
        unit.append(A, added(), expected_version=NEW_STREAM)
        conn.rollback()
        unit.append(B, added(), expected_version=NEW_STREAM)

    assert store.read_stream(conn, A) == []
    assert len(store.read_stream(conn, B)) == 1


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


def test_a_commit_inside_a_block_takes_what_was_collected_along(engine: Engine) -> None:
    with engine.connect() as conn, store.unit(conn) as unit:
        conn.execute(text("SELECT 1"))
        unit.append(A, added(), expected_version=NEW_STREAM)
        conn.commit()
        unit.append(B, added(), expected_version=NEW_STREAM)

    assert keys(engine) == ["a"]  # the second transaction was never committed


def test_a_block_in_autocommit_mode_is_refused(engine: Engine) -> None:
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn,
        pytest.raises(IsolationLevelError),
        store.unit(conn) as unit,
    ):
        unit.append(A, added(), expected_version=NEW_STREAM)

    assert keys(engine) == []


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


# -- savepoints that the unit did not see begin, and ends of its place -----------------------------


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


def test_a_unit_whose_block_has_ended_takes_nothing(conn: Connection) -> None:
    with store.unit(conn) as unit:
        unit.append(A, added(), expected_version=NEW_STREAM)
    for use in (
        lambda: unit.append(B, added(), expected_version=NEW_STREAM),
        lambda: unit.load(Till, "7"),
        lambda: unit.save(Till("7")),
    ):
        with pytest.raises(ValueError, match="has ended"):
            use()
    assert unit.appended[A].version == 1


# -- conditions ------------------------------------------------------------------------------------


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
