"""A restored or copied database begins anew as a whole, beside writers and who registers."""

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, select, text
from sqlalchemy.exc import OperationalError

from datapatterns.change_log import ChangeLog, Consumer, change_token, current_snapshot
from datapatterns.change_log.capture_names import batches_name, rows_name
from datapatterns.errors import ForeignSnapshotError, IsolationLevelError, TransactionInUseError
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.view_tables import run

LOG = ChangeLog()


@pytest.fixture
def log_name(engine: Engine) -> str:
    """The log of a table, with somebody who consumes it, as if restored from elsewhere."""
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE stock (id int)"))
        log_name = LOG.capture(conn, "stock", ["id"])
        LOG.register_consumer(conn, "relay", "test", log_names=[log_name])
    run(
        engine,
        "UPDATE datapatterns.change_consumer SET system_identifier = 1",
        f"INSERT INTO datapatterns.{rows_name(log_name)}"  # noqa: S608
        " (change_xid, change_sign, id) VALUES ('999999999999', 1, 7)",
        f"INSERT INTO datapatterns.{batches_name(log_name)}"  # noqa: S608
        " VALUES ('999999999999', 1, 2, ARRAY[8, 9])",
    )
    return log_name


@pytest.fixture
def copy(engine: Engine, server_url: URL, log_name: str) -> Iterator[Engine]:
    """A copy of the database on the same server."""
    run(
        engine,
        "UPDATE datapatterns.change_consumer SET system_identifier ="
        " (SELECT system_identifier FROM pg_control_system())",
        f"DELETE FROM datapatterns.{rows_name(log_name)}",  # noqa: S608
        f"DELETE FROM datapatterns.{batches_name(log_name)}",  # noqa: S608
    )
    engine.dispose()
    name = f"{engine.url.database}_copy"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{engine.url.database}"'))
    copy = create_engine(engine.url.set(database=name))
    yield copy
    copy.dispose()
    with admin.connect() as conn:
        conn.execute(text(f'DROP DATABASE "{name}"'))
    admin.dispose()


def locked(conn: Connection) -> Consumer:
    consumer = LOG.lock_consumer(conn, "relay")
    assert consumer is not None
    return consumer


def rebase(engine: Engine) -> int:
    with engine.begin() as conn:
        return LOG.rebase(conn)


def logged(engine: Engine, log_name: str) -> list[int]:
    with engine.connect() as conn:
        return list(conn.scalars(text(f"SELECT id FROM datapatterns.{log_name} ORDER BY id")))  # noqa: S608


def test_a_copy_on_the_same_server_is_refused_until_it_is_rebased(
    engine: Engine, copy: Engine, log_name: str
) -> None:
    with copy.connect() as conn, pytest.raises(ForeignSnapshotError):
        locked(conn)
    run(copy, "INSERT INTO stock VALUES (1)")

    assert rebase(copy) == 1
    run(copy, "INSERT INTO stock VALUES (2)")

    assert logged(copy, log_name) == [2]
    with copy.begin() as conn:
        consumer = locked(conn)
        snapshot = conn.execute(select(current_snapshot)).scalar_one()
        LOG.advance_consumer(conn, "relay", snapshot, rebuilt=consumer)
        assert consumer.must_rebuild
        assert consumer.restart_reason == "the database was restored or copied"
    with copy.begin() as conn:
        assert not locked(conn).must_rebuild
    with engine.begin() as conn:  # the original goes on as before
        assert not locked(conn).changed_logs


def test_foreign_rows_are_gone_and_what_is_written_since_is_there(
    engine: Engine, log_name: str
) -> None:
    rebase(engine)
    run(engine, "INSERT INTO stock VALUES (1)")

    assert logged(engine, log_name) == [1]


def test_rebasing_waits_for_writers_and_forgets_nothing_that_comes_later(
    engine: Engine, log_name: str
) -> None:
    with engine.connect() as writer:
        writer.execute(text("INSERT INTO stock VALUES (1)"))
        rebasing = threading.Thread(target=rebase, args=[engine])
        rebasing.start()
        until_blocked_by(engine, writer)
        writer.commit()
        rebasing.join(timeout=30)
    run(engine, "INSERT INTO stock VALUES (2)")

    # The first is in the table before anybody can read everything anew.
    assert logged(engine, log_name) == [2]


def test_rebasing_that_waits_too_long_changes_nothing_and_is_done_again(
    engine: Engine, log_name: str
) -> None:
    with engine.connect() as writer:
        writer.execute(text("INSERT INTO stock VALUES (1)"))
        with engine.connect() as conn:
            conn.execute(text("SET LOCAL lock_timeout = '10ms'"))
            with pytest.raises(OperationalError, match="lock timeout"):
                LOG.rebase(conn)
        writer.rollback()

    assert logged(engine, log_name) == [7, 8, 9]
    with engine.connect() as conn, pytest.raises(ForeignSnapshotError):
        locked(conn)
    assert rebase(engine) == 1


def test_who_is_registering_comes_first_and_begins_anew_too(engine: Engine, log_name: str) -> None:
    found: list[int] = []
    with engine.connect() as registrar:
        LOG.register_consumer(registrar, "late", "test", log_names=[log_name])
        run(engine, "INSERT INTO stock VALUES (1)")  # pending for who registers
        rebasing = threading.Thread(target=lambda: found.append(rebase(engine)))
        rebasing.start()
        until_blocked_by(engine, registrar)
        registrar.commit()
        rebasing.join(timeout=30)

    assert found == [2]
    with engine.begin() as conn:
        late = LOG.lock_consumer(conn, "late")
        assert late is not None
        assert late.must_rebuild


def test_a_dropped_table_does_not_keep_others_from_beginning_anew(
    engine: Engine, log_name: str
) -> None:
    run(engine, "DROP TABLE stock CASCADE")

    assert rebase(engine) == 1
    assert logged(engine, log_name) == []


@pytest.mark.usefixtures("log_name")
def test_rebasing_needs_a_transaction_that_sees_what_others_have_done(engine: Engine) -> None:
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with snapshot.connect() as conn, pytest.raises(IsolationLevelError):
        LOG.rebase(conn)
    with engine.connect() as conn:
        conn.execute(text("INSERT INTO stock VALUES (1)"))
        with pytest.raises(TransactionInUseError):
            LOG.rebase(conn)


@pytest.mark.usefixtures("log_name")
def test_a_token_is_not_held_against_a_foreign_snapshot(engine: Engine) -> None:
    with engine.begin() as conn:
        token = change_token(conn)
        conn.execute(text("UPDATE datapatterns.change_consumer SET populated = true"))

    with engine.connect() as conn, pytest.raises(ForeignSnapshotError):
        LOG.has_consumed(conn, "relay", token)
