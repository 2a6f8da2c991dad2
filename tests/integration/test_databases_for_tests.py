"""Databases that tests borrow: quick, and gone afterwards, also after a kill."""

import signal
import subprocess
import sys

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, text

from datapatterns.embedded import PostgresServer
from datapatterns.testing import Databases, wait_until
from tests.fixtures.owners import CHECKOUT, hear

RUN = """
import sys
from sqlalchemy import make_url
from datapatterns.testing import Databases
with Databases(make_url(sys.argv[1])) as databases:
    print(databases.new().database, flush=True)
    sys.stdin.readline()
"""


def names(server: URL) -> set[str]:
    engine = create_engine(server, poolclass=NullPool)
    with engine.connect() as conn:
        return set(conn.scalars(text("SELECT datname FROM pg_database")))


@pytest.fixture
def other_run(server_url: URL) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 -- our own program
        [sys.executable, "-c", RUN, server_url.render_as_string(hide_password=False)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_borrowed_database_has_the_librarys_tables(engine: Engine) -> None:
    with engine.connect() as conn:
        assert conn.scalar(text("SELECT to_regnamespace('datapatterns') IS NOT NULL"))


def test_the_tables_can_be_in_another_schema(server_url: URL) -> None:
    with Databases(server_url, schema="elsewhere") as databases, databases.lend() as url:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as conn:
            assert conn.scalar(text("SELECT to_regnamespace('elsewhere') IS NOT NULL"))
            assert conn.scalar(text("SELECT to_regnamespace('datapatterns') IS NULL"))


def test_nothing_is_left_after_a_run(server_url: URL) -> None:
    before = names(server_url)

    with Databases(server_url) as databases:
        lent = databases.new()
        assert lent.database in names(server_url)

    assert lent.database not in names(server_url)
    assert not {name for name in names(server_url) - before if name.startswith(databases.run)}


def test_the_next_run_drops_what_a_killed_one_left(
    server_url: URL, other_run: subprocess.Popen[str]
) -> None:
    with other_run:
        left = hear(other_run)
        assert left in names(server_url)
        other_run.send_signal(signal.SIGKILL)
    # The server notices the end of a connection in its own time.
    run = left.rpartition("_")[0]
    engine = create_engine(server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        gone = text(
            "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = :run"
        ).bindparams(run=run)
        wait_until(lambda: conn.scalar(gone))

    with Databases(server_url):
        assert left not in names(server_url)


def test_a_run_leaves_those_of_a_parallel_run_alone(
    server_url: URL, other_run: subprocess.Popen[str]
) -> None:
    with other_run:
        theirs = hear(other_run)

        with Databases(server_url):
            assert theirs in names(server_url)

        other_run.communicate("\n")
    assert theirs not in names(server_url)


def test_a_database_is_dropped_though_somebody_is_connected(databases: Databases) -> None:
    url = databases.new()
    engine = create_engine(url)
    with engine.connect() as conn:
        conn.execute(text("SELECT 1"))

        databases.drop(url)

        assert url.database not in names(databases.server)
        conn.invalidate()
    engine.dispose()


def test_databases_of_another_kind_are_left_alone(postgres_server: PostgresServer) -> None:
    admin = create_engine(postgres_server.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as conn:
        for name in ["datapatterns_tests", "datapatterns_tests_mine", "shop"]:
            conn.execute(text(f"CREATE DATABASE {name}"))

    with Databases(postgres_server.url):
        pass

    assert names(postgres_server.url) >= {
        "datapatterns_tests",
        "datapatterns_tests_mine",
        "shop",
    }
