"""The event store through PgBouncer in transaction mode: a new session for each transaction."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL, Connection, Engine, text

from datapatterns.event_sourcing import (
    ANY,
    EventStore,
    Follower,
    LogFilter,
    NewEvent,
    Pace,
    RecordedEvent,
    StreamId,
    TypedLog,
    publish_mark,
)
from datapatterns.testing import wait_until
from tests.fixtures.poolers import Pool, plain_engine

ENOUGH_SECONDS = 60

store = EventStore()


@pytest.fixture
def pooled(pool: Pool, database_url: URL) -> URL:
    """The address of a pooler before the test's database."""
    [url] = pool([database_url])
    return url


def write(conn: Connection, key: str, count: int = 1) -> None:
    events = [NewEvent("thing.happened", {"n": n}, tags=("t",)) for n in range(count)]
    store.append(conn, StreamId("s", key), events, expected_version=ANY)


def random_writer(engine: Engine, seed: int) -> int:
    """Append in one or several transactions of one connection; return what was committed."""
    chance = random.Random(seed)  # noqa: S311 -- to be repeated, not to be secret
    committed = 0
    with engine.connect() as conn:
        for _ in range(30):
            count = chance.choice([1, 2, 5])
            write(conn, chance.choice("abc"), count)
            if chance.random() < 0.2:
                with conn.begin_nested() as savepoint:
                    write(conn, "undone")
                    savepoint.rollback()
            if chance.random() < 0.2:
                conn.rollback()
                continue
            conn.commit()
            committed += count
    return committed


def test_one_connection_gets_another_session_for_another_transaction(pooled: URL) -> None:
    """The control: without that, these tests would prove nothing."""
    engine = plain_engine(pooled)
    with engine.connect() as one, engine.connect() as other:
        before = [conn.scalar(text("SELECT pg_backend_pid()")) for conn in (one, other)]
        for conn in (one, other):  # the session that was free last is given first
            conn.commit()
        after = [conn.scalar(text("SELECT pg_backend_pid()")) for conn in (one, other)]

    assert after == before[::-1]


def test_writers_and_a_follower_through_it_lose_nothing(pooled: URL, engine: Engine) -> None:
    through = plain_engine(pooled)
    follower = Follower(store, through, limit=7, pace=Pace(seconds_max=0.01))
    seen: list[RecordedEvent] = []

    def follow() -> None:
        for page in follower.pages():
            seen.extend(page.events)

    with ThreadPoolExecutor(5) as pool:
        following = pool.submit(follow)
        committed = sum(pool.map(lambda seed: random_writer(through, seed), range(4)))
        wait_until(
            lambda: len(seen) >= committed or following.done(), deadline_seconds=ENOUGH_SECONDS
        )
        follower.stop()
        following.result(ENOUGH_SECONDS)

    with engine.begin() as conn:
        assert seen == store.read_log(conn, limit=10_000).events
    assert len(seen) == committed > 0


def test_every_way_of_reading_works_through_it(pooled: URL) -> None:
    through = plain_engine(pooled)
    wanted = LogFilter(event_types=["thing.happened"], tags=["t"], tenant="", categories=["s"])
    with through.connect() as conn:
        for _ in range(8):  # more often than psycopg takes to prepare a statement
            write(conn, "a")
            conn.commit()
            publish_mark(conn, store)
            conn.commit()
            page = store.read_log(conn, limit=3, matching=wanted)
            conn.rollback()
            store.read_log(conn, page)
            conn.rollback()
            TypedLog(store).read(conn, matching=LogFilter(event_types=[]))
            conn.rollback()
            assert store.read_log(conn, published=True).caught_up
            conn.rollback()
            store.read_stream(conn, StreamId("s", "a"), backwards=True, to_version=3)
            store.blockers(conn)
            conn.rollback()


def test_a_prepared_transaction_holds_readers_back_through_it(pooled: URL) -> None:
    through = plain_engine(pooled)
    with through.connect() as conn:
        if conn.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("this server has no prepared transactions")
        write(conn, "prepared")
        conn.exec_driver_sql("PREPARE TRANSACTION 'pooled'")
        conn.commit()
        write(conn, "quick")
        conn.commit()
        held = store.read_log(conn)
        conn.rollback()
    with through.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql("COMMIT PREPARED 'pooled'")
    with through.connect() as conn:
        free = store.read_log(conn)

    assert held.events == []
    assert [event.stream.key for event in free.events] == ["prepared", "quick"]
