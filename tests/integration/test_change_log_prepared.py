"""A prepared transaction is consumed when it is committed, and not before, whatever restarts."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, select, text

from datapatterns.change_log import ChangeLog, ChangeToken, change_token
from datapatterns.embedded import PostgresServer
from datapatterns.materialized_view import MaterializedView
from datapatterns.sql.migrating import upgrade
from tests.fixtures.view_tables import (
    create,
    create_tables,
    differences,
    refresh,
    run,
    weekly_sales,
)

LOG = ChangeLog()
WEEKLY = MaterializedView("weekly_sales", weekly_sales())
CONSUMER = "view:weekly_sales"


def prepare(engine: Engine) -> ChangeToken:
    """Leave a line, and half of what a savepoint undid, in a prepared transaction."""
    with engine.connect() as conn:
        conn.execute(text("INSERT INTO line VALUES (1, 7, 1, 100, 1.0)"))
        with conn.begin_nested() as savepoint:
            conn.execute(text("INSERT INTO line VALUES (2, 7, 1, 200, 1.0)"))
            savepoint.rollback()
        with conn.begin_nested():
            conn.execute(text("INSERT INTO line VALUES (3, 7, 1, 300, 1.0)"))
        token = change_token(conn)
        conn.exec_driver_sql("PREPARE TRANSACTION 'held'")
        conn.commit()
    return token


def end(engine: Engine, verdict: str) -> None:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
        conn.exec_driver_sql(f"{verdict} PREPARED 'held'")


def declare(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
    run(engine, "INSERT INTO product VALUES (1, 'dairy')")
    create(engine, WEEKLY)


def has_consumed(engine: Engine, token: ChangeToken) -> bool:
    with engine.connect() as conn:
        return LOG.has_consumed(conn, CONSUMER, token)


def lines(engine: Engine) -> list[int]:
    with engine.connect() as conn:
        return list(conn.scalars(select(WEEKLY.c.lines)))


def log_rows(conn: Connection) -> int:
    return sum(log.rows for log in LOG.status(conn).logs.values())


@pytest.fixture
def here(engine: Engine) -> Iterator[Engine]:
    """A database of a server that prepares transactions, with a view."""
    with engine.connect() as conn:
        if conn.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("the server has no prepared transactions")
    declare(engine)
    yield engine
    with engine.connect() as conn:
        left = conn.scalar(text("SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'held'"))
    if left:
        end(engine, "ROLLBACK")


@pytest.mark.parametrize(("verdict", "expected"), [("COMMIT", [2]), ("ROLLBACK", [])])
def test_what_was_prepared_is_consumed_when_it_is_decided(
    here: Engine, verdict: str, expected: list[int]
) -> None:
    token = prepare(here)
    run(here, "INSERT INTO line VALUES (9, 8, 1, 900, 1.0); DELETE FROM line WHERE id = 9")
    refresh(here, WEEKLY)
    with here.begin() as conn:
        collected = LOG.collect_garbage(conn)
    assert (lines(here), has_consumed(here, token), collected > 0) == ([], False, True)

    end(here, verdict)
    refresh(here, WEEKLY)

    assert (lines(here), has_consumed(here, token)) == (expected, True)
    assert differences(here, WEEKLY, weekly_sales()) == 0
    with here.begin() as conn:
        LOG.collect_garbage(conn)
        assert log_rows(conn) == 0


def test_the_status_names_a_prepared_transaction(here: Engine) -> None:
    token = prepare(here)

    with here.connect() as conn:
        oldest = LOG.status(conn).oldest_transaction

    assert oldest is not None
    assert (oldest.pid, oldest.gid, oldest.xid) == (None, "held", token.xid)


@pytest.mark.parametrize(("verdict", "expected"), [("COMMIT", [2]), ("ROLLBACK", [])])
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_what_was_prepared_outlives_the_server(
    postgres_server: PostgresServer, verdict: str, expected: list[int], *, kill: bool
) -> None:
    engine = create_engine(postgres_server.url)
    with engine.begin() as conn:
        upgrade(conn)
    declare(engine)
    token = prepare(engine)
    refresh(engine, WEEKLY)
    engine.dispose()
    (postgres_server.kill if kill else postgres_server.stop)()
    postgres_server.start()
    refresh(engine, WEEKLY)
    assert (lines(engine), has_consumed(engine, token)) == ([], False)

    end(engine, verdict)
    refresh(engine, WEEKLY)

    assert (lines(engine), has_consumed(engine, token)) == (expected, True)
    assert differences(engine, WEEKLY, weekly_sales()) == 0
    engine.dispose()


def test_a_transaction_that_consumes_can_be_prepared(here: Engine) -> None:
    run(here, "INSERT INTO line VALUES (1, 7, 1, 100, 1.0)")
    with here.connect() as conn:
        WEEKLY.refresh(conn)
        conn.exec_driver_sql("PREPARE TRANSACTION 'held'")
        conn.commit()
    with here.begin() as conn:
        assert LOG.collect_garbage(conn) == 0  # it may be rolled back

    end(here, "COMMIT")

    assert lines(here) == [1]
