"""The event store through PgBouncer in transaction mode: a new session for each transaction."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

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

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ENOUGH_SECONDS = 60
SETTINGS = """
[databases]
pooled = {database}
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = 6432
auth_type = any
pool_mode = transaction
default_pool_size = 3
ignore_startup_parameters = extra_float_digits
logfile = {folder}/log
"""

store = EventStore()


@pytest.fixture
def pooled(database_url: URL) -> Iterator[URL]:
    """The address of a pooler before the test's database."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    with TemporaryDirectory(prefix="dp") as name:
        folder = Path(name)
        (folder / "ini").write_text(
            SETTINGS.format(folder=folder, database=connection_string(database_url))
        )
        as_root = os.geteuid() == 0  # it refuses to be root
        if as_root:
            shutil.chown(folder, "nobody")
            folder.chmod(0o755)
        pooler = subprocess.Popen(  # noqa: S603 -- what was found on the path
            [PGBOUNCER, *(["-u", "nobody"] if as_root else []), "-q", str(folder / "ini")]
        )
        url = make_url("postgresql+psycopg://postgres@/pooled")
        url = url.update_query_dict({"host": str(folder), "port": "6432"})
        try:
            wait_until(lambda: answers(url), deadline_seconds=ENOUGH_SECONDS)
            yield url
        finally:
            pooler.terminate()
            pooler.wait()


def connection_string(url: URL) -> str:
    query = {name: str(value) for name, value in url.query.items()}
    parts = {
        "host": url.host or query.get("host"),
        "port": url.port or query.get("port"),
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
    }
    return " ".join(f"{name}='{value}'" for name, value in parts.items() if value)


def engine_on(url: URL) -> Engine:
    # The server's sessions change, so none of them has what another one has prepared.
    return create_engine(url, poolclass=NullPool, connect_args={"prepare_threshold": None})


def answers(url: URL) -> bool:
    try:
        with engine_on(url).connect():
            return True
    except OperationalError:
        return False


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
    engine = engine_on(pooled)
    with engine.connect() as one, engine.connect() as other:
        before = [conn.scalar(text("SELECT pg_backend_pid()")) for conn in (one, other)]
        for conn in (one, other):  # the session that was free last is given first
            conn.commit()
        after = [conn.scalar(text("SELECT pg_backend_pid()")) for conn in (one, other)]

    assert after == before[::-1]


def test_writers_and_a_follower_through_it_lose_nothing(pooled: URL, engine: Engine) -> None:
    through = engine_on(pooled)
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
    through = engine_on(pooled)
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
    through = engine_on(pooled)
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
