"""A consumer takes the difference between two snapshots, once, however transactions overlap."""

import threading

import pytest
from sqlalchemy import (
    ARRAY,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.engine.interfaces import IsolationLevel

from datapatterns.change_log import (
    ChangeLog,
    Snapshot,
    Xid8,
    current_snapshot,
    not_shown_by,
    pending_for,
)
from datapatterns.errors import (
    ConsumerMissingError,
    ForeignSnapshotError,
    IsolationLevelError,
    TransactionInUseError,
)
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.colours import Call

LOG = ChangeLog()
notes = Table(
    "note",
    MetaData(),
    Column("xid", Xid8, server_default=text("pg_current_xact_id()"), nullable=False),
    Column("number", Integer, nullable=False),
)


@pytest.fixture(autouse=True)
def relay(engine: Engine) -> None:
    """A log kept by hand, and somebody who consumes it."""
    with engine.begin() as conn:
        notes.create(conn)
        LOG.register_consumer(conn, "relay", "test")


def note(conn: Connection, number: int) -> None:
    conn.execute(insert(notes).values(number=number))


def consume(conn: Connection) -> list[int]:
    """Take what is pending, and say so, as a relay does."""
    consumer = LOG.lock_consumer(conn, "relay")
    assert consumer is not None
    unseen = select(notes.c.number).where(not_shown_by(consumer.snapshot, notes.c.xid))
    numbers = func.array(unseen.scalar_subquery(), type_=ARRAY(Integer))
    taken, snapshot = conn.execute(select(numbers, current_snapshot)).one()
    LOG.advance_consumer(conn, "relay", snapshot)
    return sorted(taken)


def pending(conn: Connection) -> list[int]:
    unseen = pending_for("relay", notes.c.xid, schema=LOG.schema)
    return sorted(conn.scalars(select(notes.c.number).where(unseen)))


def test_what_is_committed_is_taken_once(call: Call) -> None:
    call(note, 1)

    assert call(pending) == [1]
    assert call(consume) == [1]
    assert call(consume) == []
    assert call(pending) == []


def test_a_late_commit_is_taken_when_it_commits(engine: Engine) -> None:
    with engine.connect() as late, engine.begin() as conn:
        note(late, 1)
        note(conn, 2)
        conn.commit()

        with engine.begin() as relay:
            assert consume(relay) == [2]
        late.commit()

        with engine.begin() as relay:
            assert consume(relay) == [1]
        with engine.begin() as relay:
            assert consume(relay) == []


def test_what_was_rolled_back_to_a_savepoint_is_never_taken(engine: Engine) -> None:
    with engine.begin() as conn:
        note(conn, 1)
        with conn.begin_nested() as savepoint:
            note(conn, 2)
            savepoint.rollback()
        with conn.begin_nested():
            note(conn, 3)

    with engine.begin() as conn:
        assert consume(conn) == [1, 3]


def test_a_rolled_back_consumer_takes_the_same_again(engine: Engine) -> None:
    with engine.begin() as conn:
        note(conn, 1)

    with engine.connect() as conn:
        assert consume(conn) == [1]
        conn.rollback()

    with engine.begin() as conn:
        assert consume(conn) == [1]


def test_what_the_consuming_transaction_writes_later_stays_pending(engine: Engine) -> None:
    with engine.begin() as conn:
        LOG.lock_consumer(conn, "relay")
        with engine.begin() as other:  # from now on, snapshots of `conn` show its own id
            note(other, 1)
        LOG.advance_consumer(conn, "relay", conn.execute(select(current_snapshot)).scalar_one())
        note(conn, 2)

    with engine.begin() as conn:
        assert consume(conn) == [2]


def test_what_the_registering_transaction_writes_later_is_pending(engine: Engine) -> None:
    with engine.begin() as conn:
        note(conn, 1)
        with engine.begin() as other:
            note(other, 2)
        LOG.register_consumer(conn, "late", "test")
        note(conn, 3)

    with engine.begin() as conn:
        unseen = pending_for("late", notes.c.xid, schema=LOG.schema)
        assert {3} <= set(conn.scalars(select(notes.c.number).where(unseen)))


def test_a_transaction_that_has_written_cannot_consume(engine: Engine) -> None:
    with engine.connect() as conn:
        note(conn, 1)

        with pytest.raises(TransactionInUseError):
            consume(conn)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_consuming_needs_read_committed(engine: Engine, level: IsolationLevel) -> None:
    with (
        engine.connect().execution_options(isolation_level=level) as conn,
        pytest.raises(IsolationLevelError),
    ):
        consume(conn)


def test_the_second_consumer_of_a_name_waits_and_takes_nothing_twice(engine: Engine) -> None:
    with engine.begin() as conn:
        note(conn, 1)
    taken: list[int] = []

    def consume_too() -> None:
        with engine.begin() as conn:
            taken.extend(consume(conn))

    with engine.connect() as first:
        assert consume(first) == [1]
        second = threading.Thread(target=consume_too)
        second.start()
        until_blocked_by(engine, first)
        first.commit()
        second.join(timeout=30)

    assert taken == []


def test_a_locked_consumer_can_be_skipped(engine: Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        LOG.lock_consumer(first, "relay")

        assert LOG.lock_consumer(second, "relay", skip_locked=True) is None


def test_registering_again_keeps_what_is_pending(engine: Engine) -> None:
    with engine.begin() as conn:
        note(conn, 1)

    with engine.begin() as conn:
        LOG.register_consumer(conn, "relay", "test")

    with engine.begin() as conn:
        assert consume(conn) == [1]


def test_garbage_is_kept_for_who_is_registering(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE stock (id int)"))
        log_name = LOG.capture(conn, "stock", ["id"])
    count = text(f"SELECT count(*) FROM datapatterns.{log_name}")  # noqa: S608
    with engine.connect() as writer, engine.connect() as registrar:
        writer.execute(text("INSERT INTO stock VALUES (1)"))
        LOG.register_consumer(registrar, "late", "test", log_names=[log_name])
        writer.commit()
        with engine.begin() as conn:
            assert LOG.collect_garbage(conn) == 0
        registrar.commit()

    with engine.begin() as conn:
        assert LOG.collect_garbage(conn) == 0
        assert conn.execute(count).scalar_one() == 1


_NAMESAKE = text(
    "INSERT INTO datapatterns.change_consumer"
    " (name, kind, snapshot, system_identifier, database_oid)"
    " VALUES ('late', 'test', pg_current_snapshot(), 1, 1)"
)


def test_garbage_is_kept_from_the_moment_that_registering_looks(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE stock (id int)"))
        log_name = LOG.capture(conn, "stock", ["id"])

    def register() -> None:
        with engine.begin() as conn:
            LOG.register_consumer(conn, "late", "test", log_names=[log_name])

    with engine.connect() as writer, engine.connect() as namesake:
        writer.execute(text("INSERT INTO stock VALUES (1)"))
        # By hand, so that it is not its turn.
        namesake.execute(_NAMESAKE)
        registrar = threading.Thread(target=register)
        registrar.start()
        until_blocked_by(engine, namesake)
        writer.commit()
        with engine.begin() as conn:
            collected = LOG.collect_garbage(conn)
        namesake.rollback()
        registrar.join()

    assert collected == 0


def test_collecting_garbage_needs_to_see_who_registered_meanwhile(engine: Engine) -> None:
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with snapshot.connect() as conn, pytest.raises(IsolationLevelError):
        LOG.collect_garbage(conn)


def test_nobody_consumes_under_an_unknown_name(engine: Engine) -> None:
    with engine.connect() as conn:
        with pytest.raises(ConsumerMissingError):
            LOG.lock_consumer(conn, "nobody")
        with pytest.raises(ConsumerMissingError):
            LOG.lock_consumer(conn, "nobody", skip_locked=True)
        with pytest.raises(ConsumerMissingError):
            LOG.advance_consumer(conn, "nobody", Snapshot.parse("1:1:"))


@pytest.mark.parametrize("column", ["system_identifier", "database_oid"])
def test_a_snapshot_of_another_database_is_refused(engine: Engine, column: str) -> None:
    with engine.begin() as conn:
        conn.execute(text(f"UPDATE datapatterns.change_consumer SET {column} = 1"))  # noqa: S608

    with engine.connect() as conn, pytest.raises(ForeignSnapshotError):
        consume(conn)


def test_a_log_that_is_none_is_named(engine: Engine) -> None:
    with engine.connect() as conn, pytest.raises(ValueError, match=r"'nope' is no log"):
        LOG.register_consumer(conn, "late", "test", log_names=["nope"])
