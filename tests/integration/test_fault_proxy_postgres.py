"""What PostgreSQL's clients see of a broken network, and what the database holds afterwards."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import psycopg
import pytest
from psycopg.errors import CheckViolation, ConnectionTimeout, QueryCanceled
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.embedded import EmbeddedServers
from datapatterns.testing import FaultProxy, wait_until
from datapatterns.testing.faults import FaultProxyFactory, forwarding
from datapatterns.testing.faults.forwarding import reset

pytestmark = pytest.mark.postgres

ENOUGH_SECONDS = 20


@pytest.fixture
def notes(engine: Engine) -> Engine:
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE note (number int)"))
    return engine


@pytest.fixture
def proxy(notes: Engine, datapatterns_fault_proxy: FaultProxyFactory) -> FaultProxy[URL]:
    return datapatterns_fault_proxy(notes.url)


@pytest.fixture
def broken(proxy: FaultProxy[URL]) -> Iterator[Engine]:
    """An engine whose connections go through the proxy."""
    engine = create_engine(proxy.url)
    yield engine
    engine.dispose()


def dsn(url: URL, **options: str) -> str:
    libpq = url.set(drivername="postgresql").update_query_dict(options)
    return libpq.render_as_string(hide_password=False)


def numbers(notes: Engine) -> list[int]:
    with notes.connect() as conn:
        return list(conn.scalars(text("SELECT number FROM note ORDER BY number")))


def add(engine: Engine, number: int) -> None:
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO note VALUES (:number)"), {"number": number})


def backends(notes: Engine, name: str) -> int:
    with notes.connect() as conn:
        asked = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
        return int(conn.scalar(asked, {"name": name}) or 0)


def test_what_passes_is_not_changed(broken: Engine, notes: Engine) -> None:
    add(broken, 1)
    with broken.connect() as conn:
        wide = conn.scalar(text("SELECT repeat('x', 3000000)"))

    assert wide == "x" * 3_000_000
    assert numbers(notes) == [1]


def test_a_lost_reply_to_commit_does_not_tell_that_the_row_is_there(
    proxy: FaultProxy[URL], broken: Engine, notes: Engine
) -> None:
    trap = proxy.cut_next_reply_to("COMMIT")

    with pytest.raises(OperationalError) as caught:
        add(broken, 1)

    assert caught.value.connection_invalidated
    assert isinstance(caught.value.orig, psycopg.Error)
    assert caught.value.orig.sqlstate is None
    assert trap.has_fired
    assert numbers(notes) == [1]


def test_a_lost_commit_looks_the_same_and_there_is_no_row(
    proxy: FaultProxy[URL], broken: Engine, notes: Engine
) -> None:
    trap = proxy.cut_before_request("COMMIT")

    with pytest.raises(OperationalError) as caught:
        add(broken, 1)

    assert caught.value.connection_invalidated
    assert isinstance(caught.value.orig, psycopg.Error)
    assert caught.value.orig.sqlstate is None
    assert trap.has_fired
    assert numbers(notes) == []


def simply(conn: psycopg.Connection) -> None:
    conn.execute("BEGIN")
    conn.execute("INSERT INTO note VALUES (1)")
    conn.execute("COMMIT")


def prepared(conn: psycopg.Connection) -> None:
    conn.execute("BEGIN", prepare=True)
    conn.execute("INSERT INTO note VALUES (%s)", (1,), prepare=True)
    conn.execute("COMMIT", prepare=True)


def in_a_block(conn: psycopg.Connection) -> None:
    with conn.transaction():
        conn.execute("INSERT INTO note VALUES (1)")


def in_a_pipeline(conn: psycopg.Connection, number: int = 1) -> None:
    with conn.pipeline() as pipeline:
        conn.execute("BEGIN")
        conn.execute("INSERT INTO note VALUES (%s)", (number,))
        conn.execute("COMMIT")
        pipeline.sync()


def in_one_string(conn: psycopg.Connection) -> None:
    conn.execute("BEGIN; INSERT INTO note VALUES (1); COMMIT")


def in_other_words(conn: psycopg.Connection) -> None:
    conn.execute("BEGIN; INSERT INTO note VALUES (1)")
    conn.execute("/* shop */ end -- of it")


WAYS_TO_COMMIT = [simply, prepared, in_a_block, in_a_pipeline, in_one_string, in_other_words]


@pytest.mark.parametrize("commit", WAYS_TO_COMMIT)
def test_a_commit_is_recognised_however_it_is_sent(
    commit: Callable[[psycopg.Connection], None], proxy: FaultProxy[URL], notes: Engine
) -> None:
    with psycopg.connect(dsn(proxy.url), autocommit=True) as conn:
        proxy.wait_for_connections(1)
        trap = proxy.cut_next_reply_to("commit")
        with pytest.raises(psycopg.OperationalError):
            commit(conn)

    assert trap.has_fired
    assert numbers(notes) == [1]


@pytest.mark.parametrize("commit", [simply, prepared, in_a_block, in_other_words])
def test_a_commit_that_does_not_arrive_is_recognised_however_it_is_sent(
    commit: Callable[[psycopg.Connection], None], proxy: FaultProxy[URL], notes: Engine
) -> None:
    with psycopg.connect(dsn(proxy.url), autocommit=True) as conn:
        trap = proxy.cut_before_request("commit")
        with pytest.raises(psycopg.OperationalError):
            commit(conn)

    assert trap.has_fired
    assert numbers(notes) == []


def test_a_commit_is_recognised_once_it_has_been_prepared(
    proxy: FaultProxy[URL], notes: Engine
) -> None:
    """Its text went to the server earlier; only its name goes now."""
    with psycopg.connect(dsn(proxy.url), autocommit=True) as conn:
        prepared(conn)
        trap = proxy.cut_next_reply_to("COMMIT")
        with pytest.raises(psycopg.OperationalError):
            prepared(conn)

    assert trap.has_fired
    assert numbers(notes) == [1, 1]


def test_the_word_alone_is_no_commit(proxy: FaultProxy[URL]) -> None:
    trap = proxy.cut_next_reply_to("commit")

    url = dsn(proxy.url, application_name="commit")
    with psycopg.connect(url, autocommit=True, options="-c synchronous_commit=on") as conn:
        conn.execute("SELECT 'x; commit', $$;commit$$ AS committed -- commit")
        conn.execute("SELECT %s::text AS commit", ("commit",))

    assert not trap.has_fired


def test_one_connection_is_cut_and_only_once(
    proxy: FaultProxy[URL], broken: Engine, notes: Engine
) -> None:
    with psycopg.connect(dsn(proxy.url)) as bystander:
        proxy.cut_next_reply_to("COMMIT")
        with pytest.raises(OperationalError):
            add(broken, 1)

        bystander.execute("INSERT INTO note VALUES (2)")
        bystander.commit()
        add(broken, 3)

    assert numbers(notes) == [1, 2, 3]


def test_a_statement_that_commits_by_itself_is_carried_out(
    proxy: FaultProxy[URL], notes: Engine
) -> None:
    with psycopg.connect(dsn(proxy.url), autocommit=True) as conn:
        trap = proxy.cut_next_reply_to("INSERT INTO note")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("INSERT INTO note VALUES (%s)", (1,), prepare=True)

    assert trap.has_fired
    assert numbers(notes) == [1]


def test_a_copy_is_carried_out(proxy: FaultProxy[URL], notes: Engine) -> None:
    with psycopg.connect(dsn(proxy.url), autocommit=True) as conn:
        trap = proxy.cut_next_reply_to("COPY note")
        with (
            pytest.raises(psycopg.OperationalError),
            conn.cursor().copy("COPY note FROM STDIN") as copy,
        ):
            copy.write_row((1,))

    assert trap.has_fired
    assert numbers(notes) == [1]


def test_a_refused_commit_is_as_unknown_to_the_client(
    proxy: FaultProxy[URL], broken: Engine, notes: Engine
) -> None:
    with notes.begin() as conn:
        conn.execute(text("CREATE TABLE page (number int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    trap = proxy.cut_next_reply_to("COMMIT")

    with pytest.raises(OperationalError) as caught, broken.begin() as conn:
        conn.execute(text("INSERT INTO page VALUES (1), (1)"))

    assert isinstance(caught.value.orig, psycopg.Error)
    assert caught.value.orig.sqlstate is None
    assert trap.has_fired
    with notes.connect() as conn:
        assert conn.scalar(text("SELECT count(*) FROM page")) == 0


def test_a_commit_that_was_skipped_does_not_spring_the_trap(
    proxy: FaultProxy[URL], notes: Engine
) -> None:
    """In a pipeline a failed statement takes all that follow with it."""
    with notes.begin() as admin:
        admin.execute(text("ALTER TABLE note ADD CHECK (number > 0)"))
    with psycopg.connect(dsn(proxy.url), autocommit=True) as conn:
        trap = proxy.cut_next_reply_to("COMMIT")
        with pytest.raises(CheckViolation):
            in_a_pipeline(conn, number=-1)
        assert not trap.has_fired

        conn.execute("ROLLBACK")
        with pytest.raises(psycopg.OperationalError):
            simply(conn)

    trap.wait()
    assert numbers(notes) == [1]


def in_one_batch_twice(conn: psycopg.Connection) -> None:
    with conn.pipeline():
        conn.execute("BEGIN")
        conn.execute("COMMIT")
        conn.execute("INSERT INTO note VALUES (1)")
        conn.execute("COMMIT")


def test_each_trap_waits_for_a_connection_of_its_own(proxy: FaultProxy[URL], notes: Engine) -> None:
    first, second = proxy.cut_next_reply_to("COMMIT"), proxy.cut_next_reply_to("COMMIT")
    for trap in (first, second):
        with (
            psycopg.connect(dsn(proxy.url), autocommit=True) as conn,
            pytest.raises(psycopg.OperationalError),
        ):
            in_one_batch_twice(conn)
        trap.wait()
        assert second.has_fired == (trap is second)

    assert numbers(notes) == [1, 1]


def test_a_client_that_would_rather_have_tls_goes_on_in_clear(
    proxy: FaultProxy[URL], notes: Engine
) -> None:
    with psycopg.connect(dsn(proxy.url, sslmode="prefer", gssencmode="prefer")) as conn:
        trap = proxy.cut_next_reply_to("COMMIT")
        conn.execute("INSERT INTO note VALUES (1)")
        with pytest.raises(psycopg.OperationalError):
            conn.commit()

    assert trap.has_fired
    assert numbers(notes) == [1]


def test_asyncio_sees_the_same(proxy: FaultProxy[URL], notes: Engine) -> None:
    async def lose_a_commit() -> None:
        engine = create_async_engine(proxy.url)
        trap = proxy.cut_next_reply_to("COMMIT")
        with pytest.raises(OperationalError) as caught:
            async with engine.begin() as conn:
                await conn.execute(text("INSERT INTO note VALUES (1)"))
        assert caught.value.connection_invalidated
        await asyncio.to_thread(trap.wait)
        await engine.dispose()

    asyncio.run(lose_a_commit())

    assert numbers(notes) == [1]


def test_cut_connections_roll_back_and_new_ones_work(
    proxy: FaultProxy[URL], broken: Engine, notes: Engine
) -> None:
    with broken.connect() as conn:
        conn.execute(text("INSERT INTO note VALUES (1)"))
        assert proxy.cut() == 1
        with pytest.raises(OperationalError) as caught:
            conn.execute(text("SELECT 1"))
    add(broken, 2)

    assert isinstance(caught.value.orig, psycopg.Error)
    assert caught.value.orig.sqlstate is None
    assert numbers(notes) == [2]


def test_replies_that_are_held_back_arrive_in_the_end(
    proxy: FaultProxy[URL], notes: Engine
) -> None:
    with psycopg.connect(dsn(proxy.url), autocommit=True) as conn, ThreadPoolExecutor(1) as pool:
        proxy.drop_replies()
        adding = pool.submit(conn.execute, "INSERT INTO note VALUES (1)")
        wait_until(lambda: numbers(notes) == [1])
        assert not adding.done()

        proxy.pass_through()
        assert adding.result(ENOUGH_SECONDS).rowcount == 1


def test_nothing_gets_through_a_black_hole(
    proxy: FaultProxy[URL], broken: Engine, notes: Engine
) -> None:
    with broken.connect() as warm:
        warm.execute(text("SELECT 1"))
    proxy.blackhole()
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(add, broken, 1)
        assert numbers(notes) == []
        assert not adding.done()

        assert proxy.cut() == 1
        with pytest.raises(OperationalError):
            adding.result(ENOUGH_SECONDS)

    proxy.pass_through()
    assert numbers(notes) == []


def test_connecting_into_a_black_hole_ends_by_the_clients_time_out(
    proxy: FaultProxy[URL],
) -> None:
    proxy.blackhole()

    with pytest.raises(ConnectionTimeout):
        psycopg.connect(dsn(proxy.url, connect_timeout="2")).close()
    assert proxy.connections == 0


def take_leave(conn: psycopg.Connection) -> None:
    conn.close()


def vanish(conn: psycopg.Connection) -> None:
    """Go as a process does that is killed: without a last message."""
    with socket.socket(fileno=os.dup(conn.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("leave", [take_leave, vanish])
def test_a_server_does_not_hear_that_a_client_left_through_a_black_hole(
    leave: Callable[[psycopg.Connection], None], proxy: FaultProxy[URL], notes: Engine
) -> None:
    conn = psycopg.connect(dsn(proxy.url, application_name="leaver"))
    conn.execute("LOCK TABLE note")
    proxy.blackhole()
    leave(conn)

    with notes.connect() as other:
        other.execute(text("SET lock_timeout = '200ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            other.execute(text("SELECT * FROM note"))
    assert backends(notes, "leaver") == 1

    proxy.pass_through()
    wait_until(lambda: not backends(notes, "leaver"))
    conn.close()


def test_refused_connections_leave_the_open_ones_alone(
    proxy: FaultProxy[URL], broken: Engine
) -> None:
    with broken.connect() as conn:
        proxy.refuse()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(dsn(proxy.url)).close()
        assert conn.scalar(text("SELECT 1")) == 1

    proxy.pass_through()
    psycopg.connect(dsn(proxy.url)).close()


def test_nothing_waits_for_the_network_to_collect_data(proxy: FaultProxy[URL]) -> None:
    """Nagle's algorithm and delayed acknowledgements cost 40 ms together."""
    trips = []
    with psycopg.connect(dsn(proxy.url), autocommit=True) as conn:
        for _ in range(20):
            began = monotonic()
            conn.execute("SELECT 1")
            trips.append(monotonic() - began)

    assert min(trips) < 0.03


def test_latency_counts_on_each_way(proxy: FaultProxy[URL]) -> None:
    with psycopg.connect(dsn(proxy.url), autocommit=True) as conn:
        proxy.latency_seconds = 0.05
        began = monotonic()
        conn.execute("SELECT 1")
        seconds = monotonic() - began
        proxy.latency_seconds = 0

    assert seconds >= 0.1


def test_a_reply_may_break_off_in_its_middle(proxy: FaultProxy[URL]) -> None:
    with psycopg.connect(dsn(proxy.url), autocommit=True) as conn:
        trap = proxy.cut_after_bytes(5_000)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT repeat('x', 100000)")

    assert trap.has_fired


def test_a_cancellation_goes_through(proxy: FaultProxy[URL], notes: Engine) -> None:
    with (
        psycopg.connect(dsn(proxy.url, application_name="sleeper"), autocommit=True) as conn,
        ThreadPoolExecutor(1) as pool,
    ):
        sleeping = pool.submit(conn.execute, "SELECT pg_sleep(60)")
        wait_until(lambda: _is_active(notes, "sleeper"))
        conn.cancel_safe()
        with pytest.raises(QueryCanceled):
            sleeping.result(ENOUGH_SECONDS)


def _is_active(notes: Engine, name: str) -> bool:
    with notes.connect() as conn:
        asked = text(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'active'"
            " AND application_name = :name AND query LIKE '%pg_sleep%')"
        )
        return bool(conn.scalar(asked, {"name": name}))


def test_a_password_is_asked_for_and_given_through_the_proxy(
    datapatterns_fault_proxy: FaultProxyFactory,
) -> None:
    with EmbeddedServers(durable=False) as servers:
        url = servers.postgres(tcp=True).url
        proxy = datapatterns_fault_proxy(url.render_as_string(hide_password=False))
        engine = create_engine(proxy.url)
        with engine.connect() as conn:
            assert conn.scalar(text("SELECT 1")) == 1
        engine.dispose()
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(dsn(url.set(port=proxy.port, password="wrong"))).close()


def test_a_server_that_is_away_is_away_through_the_proxy(
    datapatterns_fault_proxy: FaultProxyFactory,
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy = datapatterns_fault_proxy(f"postgresql://127.0.0.1:{nobody.getsockname()[1]}/shop")

        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(proxy.url).close()

    assert proxy.connections == 0


def test_what_is_not_postgresql_is_hung_up_on(
    proxy: FaultProxy[URL], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection((str(proxy.url.host), proxy.port)) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of TLS
        client.settimeout(ENOUGH_SECONDS)
        with pytest.raises(ConnectionResetError):
            client.recv(1)

    assert "hung up" in caplog.text


def test_waiting_for_what_does_not_come_ends(proxy: FaultProxy[URL]) -> None:
    with pytest.raises(TimeoutError, match="COMMIT"):
        proxy.cut_next_reply_to("COMMIT").wait(timeout_seconds=0.01)
    with pytest.raises(TimeoutError):
        proxy.wait_for_connections(1, timeout_seconds=0.01)


def test_a_closed_proxy_leaves_no_socket_and_no_thread(notes: Engine) -> None:
    before = _open_files()
    proxy = FaultProxy(notes.url)
    conn = psycopg.connect(dsn(proxy.url))
    proxy.blackhole()
    proxy.close()
    proxy.close()

    with pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT 1")
    conn.close()
    assert _open_files() == before
    assert "datapatterns-fault-proxy" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(proxy.url.host), proxy.port)).close()
    with pytest.raises(RuntimeError, match="closed"):
        proxy.cut()


def test_who_is_cut_while_a_trap_cuts_leaves_no_socket(
    notes: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `FaultProxy.cut` and `FaultProxy.close` do to who waits for its sides to be closed."""
    before = _open_files()

    def reset_and_cut(writer: asyncio.StreamWriter) -> None:
        reset(writer)
        serving = asyncio.current_task()
        assert serving
        serving.cancel()

    monkeypatch.setattr(forwarding, "reset", reset_and_cut)
    with FaultProxy(notes.url) as proxy, psycopg.connect(dsn(proxy.url)) as conn:
        proxy.cut_next_reply_to("SELECT")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")

    assert _open_files() == before


def _open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_nonsense_is_refused(proxy: FaultProxy[URL]) -> None:
    with pytest.raises(ValueError, match="before it is sent"):
        proxy.latency_seconds = -1
    with pytest.raises(ValueError, match="-1 bytes"):
        proxy.cut_after_bytes(-1)
