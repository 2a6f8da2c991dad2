"""A log keeps what somebody lacks, nothing else, and not for ever for who stands still."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine, event, select, text

from datapatterns.change_log import ChangeLog, ChangeLogStatus, Consumer, current_snapshot
from datapatterns.errors import ForeignSnapshotError, IsolationLevelError, ViewNotPopulatedError
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.view_tables import (
    create,
    create_tables,
    differences,
    refresh,
    run,
    weekly_sales,
)

LOG = ChangeLog()


@pytest.fixture
def log_name(engine: Engine) -> str:
    """The log of a table, with two who consume it."""
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE stock (id int)"))
        log_name = LOG.capture(conn, "stock", ["id"])
        for name in ("quick", "slow"):
            LOG.register_consumer(conn, name, "test", log_names=[log_name])
    return log_name


def write(engine: Engine, count: int = 1) -> None:
    run(engine, f"INSERT INTO stock SELECT generate_series(1, {count})")


def locked(conn: Connection, name: str) -> Consumer:
    consumer = LOG.lock_consumer(conn, name)
    assert consumer is not None
    return consumer


def consume(engine: Engine, *names: str) -> None:
    for name in names:
        with engine.begin() as conn:
            consumer = locked(conn, name)
            snapshot = conn.execute(select(current_snapshot)).scalar_one()
            LOG.advance_consumer(conn, name, snapshot, rebuilt=consumer)


def collect(engine: Engine) -> int:
    with engine.begin() as conn:
        return LOG.collect_garbage(conn)


def status(engine: Engine, *, limit: int = 1000) -> ChangeLogStatus:
    with engine.connect() as conn:
        return LOG.status(conn, limit=limit)


@pytest.mark.usefixtures("log_name")
def test_what_one_consumer_lacks_is_kept(engine: Engine) -> None:
    write(engine, 3)
    consume(engine, "quick")
    assert collect(engine) == 0

    consume(engine, "slow")
    assert collect(engine) == 3


@pytest.mark.usefixtures("log_name")
def test_a_writer_that_takes_long_holds_nothing_back_but_its_own_changes(engine: Engine) -> None:
    with engine.connect() as writer:
        writer.execute(text("INSERT INTO stock VALUES (1)"))
        write(engine, 5)
        consume(engine, "quick", "slow")
        assert collect(engine) == 5
        writer.commit()

    assert collect(engine) == 0
    consume(engine, "quick")
    assert collect(engine) == 0
    consume(engine, "slow")
    assert collect(engine) == 1


@pytest.mark.usefixtures("log_name")
def test_what_only_one_of_two_snapshots_lacks_is_kept(engine: Engine) -> None:
    with engine.connect() as writer:
        writer.execute(text("INSERT INTO stock VALUES (1)"))
        consume(engine, "slow")
        writer.commit()
    consume(engine, "quick")  # its snapshot has no transaction in progress
    assert collect(engine) == 0

    consume(engine, "slow")
    assert collect(engine) == 1


def test_the_status_says_who_holds_what_back(engine: Engine, log_name: str) -> None:
    write(engine, 3)
    consume(engine, "quick")

    now = status(engine)

    log = now.logs[log_name]
    assert (log.table, log.rows, log.held_back_by, log.obstacle) == (
        "public.stock",
        3,
        "slow",
        None,
    )
    assert log.size_bytes > 0
    quick, slow = now.consumers["quick"], now.consumers["slow"]
    assert (quick.pending_rows, quick.behind_seconds) == (0, 0.0)
    assert (slow.pending_rows, slow.behind_seconds > 0) == (3, True)
    assert status(engine, limit=2).consumers["slow"].pending_rows == 2


def test_the_status_names_what_is_in_the_way(engine: Engine, log_name: str) -> None:
    run(
        engine,
        "ALTER TABLE stock DISABLE TRIGGER ALL",
        "UPDATE datapatterns.change_consumer SET database_oid = 1 WHERE name = 'slow'",
    )

    now = status(engine)

    assert "ChangeLog.recapture()" in str(now.logs[log_name].obstacle)
    assert now.consumers["quick"].must_rebuild
    assert [now.consumers[name].is_foreign for name in ("quick", "slow")] == [False, True]


@pytest.mark.usefixtures("log_name")
def test_the_status_names_the_oldest_transaction(engine: Engine) -> None:
    with engine.connect() as writer, engine.connect() as reader:
        pid, xid = writer.execute(
            text("SELECT pg_backend_pid(), pg_current_xact_id()::text::bigint")
        ).one()
        write(engine)
        reader.execute(text("SELECT 1"))
        oldest = status(engine).oldest_transaction
        writer.rollback()

    assert oldest is not None
    assert (oldest.pid, oldest.gid, oldest.xid) == (pid, None, xid)
    assert oldest.seconds is not None


@pytest.mark.usefixtures("log_name")
def test_who_lags_beyond_the_limit_begins_anew_and_is_warned_of(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    write(engine, 11)
    consume(engine, "quick")

    with caplog.at_level(logging.WARNING), engine.begin() as conn:
        assert LOG.restart_laggards(conn, pending_rows_max=10) == {"slow": 11}
        assert LOG.restart_laggards(conn, pending_rows_max=10) == {}

    assert [record.getMessage() for record in caplog.records] == [
        "consumer slow had more than 10 changes to take in and begins anew; fill its target again"
    ]
    slow = status(engine).consumers["slow"]
    assert (slow.must_rebuild, slow.pending_rows) == (True, 0)
    assert slow.restart_reason == "11 changes were pending, of 10 at most"
    assert collect(engine) == 11
    consume(engine, "slow")
    again = status(engine).consumers["slow"]
    assert (again.must_rebuild, again.restart_reason) == (False, None)


@pytest.mark.usefixtures("log_name")
@pytest.mark.parametrize(
    ("rows", "warned"), [(5, []), (6, ["quick", "slow"]), (10, ["quick", "slow"])]
)
def test_who_comes_near_the_limit_is_warned_of_and_left_alone(
    engine: Engine, caplog: pytest.LogCaptureFixture, rows: int, warned: list[str]
) -> None:
    write(engine, rows)

    with caplog.at_level(logging.WARNING), engine.begin() as conn:
        assert LOG.restart_laggards(conn, pending_rows_max=10) == {}

    assert [getattr(record, "consumer", None) for record in caplog.records] == warned
    assert status(engine).consumers["slow"].pending_rows == rows


@pytest.mark.usefixtures("log_name")
def test_who_is_at_work_is_left_alone(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    write(engine, 11)
    with engine.connect() as worker, engine.begin() as conn:
        locked(worker, "slow")

        assert LOG.restart_laggards(conn, pending_rows_max=10) == {"quick": 11}
    assert "consumer slow has more than 10 changes to take in, and is at work" in caplog.text


@pytest.mark.usefixtures("log_name")
def test_who_catches_up_at_the_last_moment_is_left_alone(engine: Engine) -> None:
    write(engine, 11)
    late = ["slow"]

    def catch_up(_conn: Connection, _cursor: object, statement: str, *_: object) -> None:
        if "SKIP LOCKED" in statement and late:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(consume, engine, late.pop()).result()

    with engine.begin() as conn:
        consume(engine, "quick")
        event.listen(conn, "before_cursor_execute", catch_up)
        assert LOG.restart_laggards(conn, pending_rows_max=10) == {}

    assert late == []
    assert not status(engine).consumers["slow"].must_rebuild


@pytest.mark.usefixtures("log_name")
def test_what_is_written_while_somebody_is_told_to_begin_anew_is_not_lost(engine: Engine) -> None:
    with engine.connect() as writer, engine.begin() as conn:
        writer.execute(text("INSERT INTO stock VALUES (1)"))
        write(engine, 11)
        LOG.restart_laggards(conn, pending_rows_max=10)
        conn.commit()
        writer.commit()

    assert status(engine).consumers["slow"].pending_rows == 1


@pytest.mark.usefixtures("log_name")
def test_who_was_told_to_begin_anew_waits_for_its_turn(engine: Engine) -> None:
    """Who waits for the lock meanwhile sees that it has to begin anew."""
    write(engine, 11)
    found: list[bool] = []

    def consume_too() -> None:
        with engine.begin() as conn:
            found.append(locked(conn, "slow").must_rebuild)

    with engine.connect() as conn:
        LOG.restart_laggards(conn, pending_rows_max=10)
        worker = threading.Thread(target=consume_too)
        worker.start()
        until_blocked_by(engine, conn)
        conn.commit()
        worker.join(timeout=30)

    assert found == [True]


def test_a_view_that_lagged_is_filled_again_and_right(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
    view = MaterializedView("weekly_sales", weekly_sales())
    run(engine, "INSERT INTO product VALUES (1, 'dairy')")
    create(engine, view)
    run(engine, "INSERT INTO line SELECT g, 1, 1, g, 1.0 FROM generate_series(1, 20) g")
    with engine.begin() as conn:
        assert LOG.restart_laggards(conn, pending_rows_max=10) == {"view:weekly_sales": 20}
    collect(engine)

    with engine.begin() as conn, pytest.raises(ViewNotPopulatedError):
        view.refresh(conn)
    with engine.begin() as conn:
        view.populate(conn)
    run(engine, "DELETE FROM line WHERE id > 10")
    refresh(engine, view)

    assert differences(engine, view, weekly_sales()) == 0


@pytest.mark.usefixtures("log_name")
def test_a_limit_is_set_where_snapshots_mean_something(engine: Engine) -> None:
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with snapshot.connect() as conn, pytest.raises(IsolationLevelError):
        LOG.restart_laggards(conn, pending_rows_max=10)
    with engine.connect() as conn, pytest.raises(ValueError, match="1 or more"):
        LOG.restart_laggards(conn, pending_rows_max=0)

    run(engine, "UPDATE datapatterns.change_consumer SET system_identifier = 1")
    with engine.connect() as conn, pytest.raises(ForeignSnapshotError):
        LOG.restart_laggards(conn, pending_rows_max=10)
