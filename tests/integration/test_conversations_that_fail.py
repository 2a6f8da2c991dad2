"""What is said to servers at once is said as psycopg says it, and leaves connections usable."""

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import psycopg
import pytest
from psycopg import Connection as DriverConnection
from psycopg.errors import DivisionByZero
from psycopg.pq import PipelineStatus, TransactionStatus
from sqlalchemy import URL

from datapatterns.sharding.reaching import conversation, first_query
from datapatterns.sharding.reaching.at_once import Talk, all_at_once
from datapatterns.sharding.reaching.conversation import Query, ask
from datapatterns.testing import Databases

pytestmark = pytest.mark.postgres

MOST_VALUES = 65_535


@pytest.fixture(scope="module")
def url(databases: Databases) -> Iterator[str]:
    url: URL = databases.new()
    plain = url.set(drivername="postgresql")
    yield plain.render_as_string(hide_password=False)
    databases.drop(url)


@pytest.fixture
def connection(url: str) -> Iterator[DriverConnection[Any]]:
    with psycopg.connect(url, **first_query.cursor_factory(asynchronous=False)) as connection:
        yield connection


def asked(driver: DriverConnection[Any], query: bytes) -> Talk[object]:
    return Talk(driver, ask(driver, Query(query, (), (), ())))


def test_when_one_fails_the_others_are_cancelled_and_can_be_used_again(url: str) -> None:
    with psycopg.connect(url) as failing, psycopg.connect(url) as waiting:
        heard = all_at_once(
            {
                "waiting": asked(waiting, b"SELECT pg_catalog.pg_sleep(600)"),
                "failing": asked(failing, b"SELECT 1 / 0"),
            }
        )

        assert heard.failed is not None
        assert heard.failed[0] == "failing"
        assert isinstance(heard.failed[1], DivisionByZero)
        for driver in (failing, waiting):
            assert driver.pgconn.transaction_status == TransactionStatus.INERROR
            assert driver.pgconn.pipeline_status == PipelineStatus.OFF
            driver.rollback()
            assert driver.execute("SELECT 1").fetchall() == [(1,)]


def test_several_statements_whose_values_none_of_them_has_are_executed_as_ever(
    connection: DriverConnection[Any],
) -> None:
    cursor = connection.execute("SELECT 1; SELECT 2", {"unused": 3})

    assert (cursor.fetchall(), cursor.nextset(), cursor.fetchall()) == ([(1,)], True, [(2,)])


def test_more_values_than_the_protocol_has_leave_a_usable_connection(
    connection: DriverConnection[Any],
) -> None:
    many = ", ".join(["%s"] * (MOST_VALUES + 1))
    with pytest.raises(psycopg.OperationalError, match=str(MOST_VALUES)):
        connection.execute(f"SELECT 1 WHERE 1 IN ({many})", [1] * (MOST_VALUES + 1))

    assert connection.pgconn.pipeline_status == PipelineStatus.OFF
    connection.rollback()
    assert connection.execute("SELECT %s", [1]).fetchall() == [(1,)]


def again(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module as it is when it is imported now."""
    spec = importlib.util.find_spec(module.__name__)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, made)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ("version", "known"), [("3.3.0", True), ("3.2.9", False), ("3.4.0", False)]
)
def test_a_driver_that_is_not_known_is_used_as_it_is(
    connection: DriverConnection[Any], monkeypatch: pytest.MonkeyPatch, version: str, *, known: bool
) -> None:
    monkeypatch.setattr(psycopg, "__version__", version)
    talks = again(conversation, monkeypatch)
    cursors = again(first_query, monkeypatch)

    assert talks.can_converse(connection, {}) is known
    for asynchronous in (False, True):
        assert bool(cursors.cursor_factory(asynchronous=asynchronous)) is known


@pytest.mark.parametrize("level", [None, *psycopg.IsolationLevel])
@pytest.mark.parametrize("yes", [None, False, True])
def test_a_transaction_that_begins_with_its_query_is_the_one_declared(
    connection: DriverConnection[Any], level: psycopg.IsolationLevel | None, *, yes: bool | None
) -> None:
    connection.isolation_level, connection.read_only, connection.deferrable = level, yes, yes
    names = ["transaction_isolation", "transaction_read_only", "transaction_deferrable"]
    found = connection.execute(
        "SELECT current_setting(name) FROM unnest(%s::text[]) AS name", [names]
    ).fetchall()

    isolation = "read committed" if level is None else level.name.replace("_", " ").lower()
    switch = "on" if yes else "off"
    assert [value for (value,) in found] == [isolation, switch, switch]
