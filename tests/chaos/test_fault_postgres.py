"""What clients see when something happens to PostgreSQL, and what is there afterwards."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
from psycopg.errors import AdminShutdown, QueryCanceled
from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError

from datapatterns.embedded import EmbeddedServers, PostgresServer
from datapatterns.embedded.processes import RunningProcess
from datapatterns.errors import FaultRefusedError
from datapatterns.testing import PostgresFaults, wait_until
from datapatterns.testing.faults.backends import find_backend

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

ENOUGH_SECONDS = 30


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with EmbeddedServers(durable=False) as servers:
        yield servers.postgres(settings={"wal_writer_delay": "10s", "autovacuum": False})


@pytest.fixture
def faults(server: PostgresServer) -> Iterator[PostgresFaults]:
    with PostgresFaults(server) as faults:
        yield faults


@pytest.fixture
def engine(server: PostgresServer) -> Iterator[Engine]:
    engine = create_engine(server.url, connect_args={"application_name": "shop"})
    with engine.begin() as conn:
        conn.execute(text("DROP TABLE IF EXISTS note"))
        conn.execute(text("CREATE TABLE note (number int)"))
    yield engine
    engine.dispose()


def pid_of(conn: Connection) -> int:
    return int(conn.scalar(text("SELECT pg_backend_pid()")) or 0)


def numbers(engine: Engine) -> list[int]:
    with engine.connect() as conn:
        return list(conn.scalars(text("SELECT number FROM note ORDER BY number")))


def add(conn: Connection, number: int) -> None:
    conn.execute(text("INSERT INTO note VALUES (:number)"), {"number": number})


def state_of(error: DBAPIError) -> str | None:
    assert isinstance(error.orig, psycopg.Error)
    return error.orig.sqlstate


def test_a_killed_connection_is_an_admin_shutdown_and_rolls_back(
    faults: PostgresFaults, engine: Engine
) -> None:
    with engine.connect() as conn:
        add(conn, 1)
        faults.kill_backend(pid_of(conn))
        with pytest.raises(OperationalError) as caught:
            conn.execute(text("SELECT 1"))

    assert isinstance(caught.value.orig, AdminShutdown)
    assert caught.value.connection_invalidated
    assert numbers(engine) == []


def test_the_connections_of_one_application_are_killed_and_no_others(
    faults: PostgresFaults, server: PostgresServer
) -> None:
    shop = create_engine(server.url, connect_args={"application_name": "shop"})
    till = create_engine(server.url, connect_args={"application_name": "till"})
    with shop.connect() as one, shop.connect() as other, till.connect() as bystander:
        assert faults.connections(application_name="shop") == [pid_of(one), pid_of(other)]
        assert faults.kill_connections(application_name="shop") == 2
        for conn in (one, other):
            with pytest.raises(OperationalError):
                conn.execute(text("SELECT 1"))

        assert bystander.scalar(text("SELECT 1")) == 1
        assert faults.kill_connections() == 1
        with pytest.raises(OperationalError):
            bystander.execute(text("SELECT 1"))
    shop.dispose()
    till.dispose()


def test_a_cancelled_statement_fails_and_its_connection_goes_on(
    faults: PostgresFaults, engine: Engine
) -> None:
    with engine.connect() as conn, ThreadPoolExecutor(1) as pool:
        pid = pid_of(conn)
        sleeping = pool.submit(conn.execute, text("SELECT pg_sleep(60)"))
        with engine.connect() as witness:
            asked = text("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = :pid")
            wait_until(lambda: _sees(witness, asked, pid))
        faults.cancel(pid)
        with pytest.raises(OperationalError) as caught:
            sleeping.result(ENOUGH_SECONDS)
        conn.rollback()

        assert isinstance(caught.value.orig, QueryCanceled)
        assert not caught.value.connection_invalidated
        assert conn.scalar(text("SELECT 1")) == 1


def _sees(witness: Connection, asked: object, pid: int) -> bool:
    seen = bool(witness.scalar(asked, {"pid": pid}))  # type: ignore[call-overload]
    witness.rollback()  # statistics of one transaction stand still
    return seen


def test_a_frozen_backend_keeps_its_locks_and_heeds_no_time_out_of_its_own(
    faults: PostgresFaults, engine: Engine
) -> None:
    with engine.connect() as conn, ThreadPoolExecutor(1) as pool:
        conn.execute(text("SET statement_timeout = '50ms'"))
        add(conn, 1)
        pid = pid_of(conn)
        faults.pause_backend(pid)
        asking = pool.submit(conn.execute, text("SELECT 1"))
        with engine.connect() as other:
            other.execute(text("SET lock_timeout = '500ms'"))
            with pytest.raises(OperationalError) as caught:
                other.execute(text("LOCK TABLE note"))
        assert not asking.done()

        faults.resume_backend(pid)
        asking.result(ENOUGH_SECONDS)
        conn.commit()

    assert state_of(caught.value) == "55P03"
    assert numbers(engine) == [1]


def test_what_is_still_frozen_goes_on_when_the_faults_close(
    server: PostgresServer, engine: Engine
) -> None:
    with engine.connect() as conn:
        pid = pid_of(conn)
        with PostgresFaults(server) as faults, ThreadPoolExecutor(1) as pool:
            faults.pause_backend(pid)
            asking = pool.submit(conn.scalar, text("SELECT 1"))
            faults.close()
            assert asking.result(ENOUGH_SECONDS) == 1


def test_what_is_still_frozen_goes_on_when_the_faults_are_forgotten(
    server: PostgresServer, engine: Engine
) -> None:
    with engine.connect() as conn:
        faults = PostgresFaults(server)
        faults.pause_backend(pid_of(conn))
        del faults

        assert conn.scalar(text("SELECT 1")) == 1


def test_what_is_still_frozen_goes_on_when_the_process_ends(
    server: PostgresServer, engine: Engine
) -> None:
    program = (
        "import sys; from sqlalchemy import make_url\n"
        "from datapatterns.testing import PostgresFaults\n"
        "faults = PostgresFaults(make_url(sys.argv[1]))\n"
        "faults.pause_backend(int(sys.argv[2]))\n"
        "raise SystemExit(7)\n"
    )
    with engine.connect() as conn:
        url = server.url.render_as_string(hide_password=False)
        command = [sys.executable, "-c", program, url, str(pid_of(conn))]
        ended = subprocess.run(command, check=False, timeout=ENOUGH_SECONDS)  # noqa: S603 -- ours

        assert ended.returncode == 7
        assert conn.scalar(text("SELECT 1")) == 1


def test_a_frozen_backend_cannot_be_ended(
    faults: PostgresFaults, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapatterns.testing.faults.postgres_faults._TERMINATE_SECONDS", 0.1)
    with engine.connect() as conn:
        pid = pid_of(conn)
        faults.pause_backend(pid)
        with pytest.raises(TimeoutError, match=f"backend {pid} did not end within 0.1 s"):
            faults.kill_backend(pid)
        faults.resume_backend(pid)
        conn.invalidate()


def test_a_frozen_server_answers_nobody_until_it_goes_on(
    faults: PostgresFaults, engine: Engine, server: PostgresServer
) -> None:
    with engine.connect() as conn, ThreadPoolExecutor(1) as pool:
        conn.execute(text("SELECT 1"))
        faults.pause()
        asking = pool.submit(conn.scalar, text("SELECT 1"))
        libpq = server.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(libpq, connect_timeout=2).close()
        assert not asking.done()

        faults.resume()
        assert asking.result(ENOUGH_SECONDS) == 1


def test_one_crashed_backend_takes_all_connections_and_nothing_that_was_committed(
    faults: PostgresFaults, engine: Engine
) -> None:
    with engine.connect() as crashed, engine.connect() as bystander:
        add(bystander, 1)
        bystander.commit()
        add(bystander, 2)
        faults.crash_backend(pid_of(crashed))

        with pytest.raises(OperationalError) as of_crashed:
            crashed.execute(text("SELECT 1"))
        with pytest.raises((OperationalError, InternalError)) as of_bystander:
            bystander.execute(text("SELECT 1"))

    assert state_of(of_crashed.value) is None
    assert state_of(of_bystander.value) in {"57P02", None}
    engine.dispose()
    assert numbers(engine) == [1]


def test_a_crashed_server_comes_back_with_all_that_was_committed(
    faults: PostgresFaults, engine: Engine, server: PostgresServer
) -> None:
    before = server.pid
    with engine.connect() as conn:
        add(conn, 1)
        conn.commit()
        add(conn, 2)
        faults.crash_and_restart()
        with pytest.raises(OperationalError) as caught:
            conn.execute(text("SELECT 1"))

    assert state_of(caught.value) in {"57P01", None}  # a backend may still notice and say so
    assert server.pid != before
    engine.dispose()
    assert numbers(engine) == [1]


def test_a_crash_loses_what_was_acknowledged_without_synchronous_commit(
    faults: PostgresFaults, engine: Engine
) -> None:
    """The negative control: a crash that is none would keep it."""
    with engine.connect() as conn:
        conn.execute(text("CHECKPOINT"))
        add(conn, 1)
        conn.commit()
        conn.execute(text("SET synchronous_commit = off"))
        add(conn, 2)
        conn.commit()
        faults.crash_and_restart()
    engine.dispose()

    assert numbers(engine) == [1]


def test_a_restart_in_good_order_keeps_all_and_ends_connections(
    faults: PostgresFaults, engine: Engine
) -> None:
    with engine.connect() as conn:
        add(conn, 1)
        conn.commit()
        conn.execute(text("SET synchronous_commit = off"))
        add(conn, 2)
        conn.commit()
        faults.restart()
        with pytest.raises(OperationalError) as caught:
            conn.execute(text("SELECT 1"))
    engine.dispose()

    assert state_of(caught.value) == "57P01"
    assert numbers(engine) == [1, 2]


def test_a_frozen_backend_does_not_bar_a_crash(faults: PostgresFaults, engine: Engine) -> None:
    with engine.connect() as conn:
        faults.pause_backend(pid_of(conn))
        faults.crash_and_restart()
        conn.invalidate()
    engine.dispose()

    assert numbers(engine) == []


def test_a_backend_that_is_not_there_is_refused(faults: PostgresFaults, engine: Engine) -> None:
    with engine.connect() as conn:
        gone = pid_of(conn)
        faults.kill_backend(gone)
        conn.invalidate()

    for fault in (faults.kill_backend, faults.cancel, faults.pause_backend, faults.crash_backend):
        with pytest.raises(ValueError, match=f"no backend of this server .* {gone}"):
            fault(gone)


def test_a_role_that_may_not_signal_is_refused(engine: Engine, server: PostgresServer) -> None:
    with engine.begin() as conn:
        conn.execute(text("DROP ROLE IF EXISTS clerk"))
        conn.execute(text("CREATE ROLE clerk LOGIN"))

    with pytest.raises(FaultRefusedError, match="GRANT pg_signal_backend"):
        PostgresFaults(server.url.set(username="clerk"))

    with engine.begin() as conn:
        conn.execute(text("GRANT pg_signal_backend TO clerk"))
    PostgresFaults(server.url.set(username="clerk")).close()


def test_a_server_that_is_not_embedded_is_neither_crashed_nor_frozen(
    engine: Engine, server: PostgresServer
) -> None:
    with PostgresFaults(server.url) as faults:
        for fault in (faults.crash_and_restart, faults.restart, faults.pause, faults.resume):
            with pytest.raises(FaultRefusedError, match="embedded PostgresServer"):
                fault()

    assert numbers(engine) == []


@pytest.mark.parametrize(
    "disguise",
    [
        lambda _own, _other: [],
        lambda own, _other: [own],
        lambda own, other: [replace(own, command="/usr/bin/shop"), other],
        lambda own, other: [own, replace(other, command="/usr/bin/shop")],
        lambda own, other: [own, replace(other, parent=1)],
    ],
    ids=["none", "one alone", "no backend", "no sibling", "another parent"],
)
def test_a_process_that_is_no_backend_of_the_server_gets_no_signal(
    disguise: Callable[[RunningProcess, RunningProcess], list[RunningProcess]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with a server in a container: its process ids mean other processes here."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda *signal_sent: sent.append(signal_sent))
    backend = RunningProcess(7_001, 7_000, "postgres: shop shop [local] idle")
    sibling = RunningProcess(7_002, 7_000, "postgres: postgres postgres [local] idle")
    table = disguise(backend, sibling)
    monkeypatch.setattr("datapatterns.testing.faults.backends.process_table", lambda: table)

    with pytest.raises(FaultRefusedError, match="on this machine"):
        find_backend(7_001, sibling=7_002, fault="freezing a backend")

    assert sent == []
    table[:] = [backend, sibling]
    assert find_backend(7_001, sibling=7_002, fault="freezing a backend") == 7_001


def test_a_backend_of_another_account_gets_no_signal(
    faults: PostgresFaults, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: signal.Signals) -> None:
        raise PermissionError(pid, number)

    monkeypatch.setattr("os.kill", kill)

    with engine.connect() as conn, pytest.raises(FaultRefusedError, match="another account"):
        faults.crash_backend(pid_of(conn))


def test_the_fixture_brings_a_server_of_its_own(
    datapatterns_postgres_faults: PostgresFaults, server_url: URL
) -> None:
    datapatterns_postgres_faults.crash_and_restart()

    assert datapatterns_postgres_faults.url != server_url


def test_a_server_that_others_use_can_lose_a_connection(server_url: URL) -> None:
    with PostgresFaults(server_url) as faults:
        conn = psycopg.connect(
            server_url.set(drivername="postgresql").render_as_string(hide_password=False),
            application_name="datapatterns-victim",
        )
        assert faults.kill_connections(application_name="datapatterns-victim") == 1
        with pytest.raises(AdminShutdown):
            conn.execute("SELECT 1")
        conn.close()
