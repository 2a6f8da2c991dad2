"""pytest's plugin: options, fixtures on real servers, and a line on what was explored.

pytest loads it wherever the library is installed, also for suites that never use it. So it imports
nothing of ours, and no driver, before a fixture is asked for.

The servers are those that ``DATABASE_URL`` and ``REDIS_URL`` name, or else embedded ones.
Each worker of pytest-xdist has databases of its own, and a Redis database of its own: with
``REDIS_URL`` the number in the URL plus that of the worker.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest

from datapatterns_pytest.explored import Explored, explored_in

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import URL, Connection, Engine

    from datapatterns.embedded import PostgresServer, ValkeyServer
    from datapatterns.testing import (
        Databases,
        Explorer,
        FaultProxyFactory,
        PostgresFaults,
        RedisFaults,
    )

_SHARDS = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the options."""
    group = parser.getgroup("datapatterns", "datapatterns: interleavings on real servers")
    group.addoption(
        "--datapatterns-replay",
        metavar="TOKEN",
        help="run only the schedule of this token, as a failed exploration has printed it",
    )
    group.addoption(
        "--datapatterns-preemptions",
        metavar="N",
        type=_count,
        help="explore all schedules with up to N preemptions, whatever the tests say",
    )
    group.addoption(
        "--datapatterns-examples",
        metavar="N",
        type=_positive,
        help="try N schedules in each random search, whatever the tests say",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepare to count, and refuse what is no token before the first test."""
    config.stash[explored_in] = Explored()
    if (token := config.getoption("--datapatterns-replay")) is not None:
        from datapatterns_pytest.replaying import check_token

        check_token(token)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a worker's counts to pytest-xdist's controller; a replay of nothing is a failure."""
    explored = session.config.stash[explored_in]
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["datapatterns"] = explored.sums()
    elif session.exitstatus == pytest.ExitCode.OK and _has_replayed_nothing(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401 -- pytest-xdist need not be there
    """Add the counts of a worker."""
    sums = getattr(node, "workeroutput", {}).get("datapatterns")
    if sums:
        node.config.stash[explored_in].add(**sums)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how much was explored, and how fast."""
    if line := str(config.stash[explored_in]):
        terminalreporter.write_line(line)
    if _has_replayed_nothing(config):
        terminalreporter.write_line(
            "datapatterns: nothing was replayed: no exploration has the tasks of this token",
            red=True,
        )


@pytest.fixture(scope="session")
def datapatterns_server_url() -> "Iterator[URL]":
    """A PostgreSQL server on which tests may create databases."""
    from sqlalchemy import make_url

    if url := os.environ.get("DATABASE_URL"):
        yield make_url(url).set(drivername="postgresql+psycopg")
        return
    from datapatterns.embedded import EmbeddedServers

    with EmbeddedServers(durable=False) as servers:
        yield servers.postgres().url


@pytest.fixture(scope="session")
def datapatterns_prepare() -> "Callable[[Connection], object] | None":
    """Override it to create your own tables: it is called once, with a connection."""
    return None


@pytest.fixture(scope="session")
def datapatterns_databases(
    datapatterns_server_url: "URL", datapatterns_prepare: "Callable[[Connection], object] | None"
) -> "Iterator[Databases]":
    """Where migrated databases come from."""
    from datapatterns.testing import Databases

    with Databases(datapatterns_server_url, prepare=datapatterns_prepare) as databases:
        yield databases


@pytest.fixture
def datapatterns_database_url(datapatterns_databases: "Databases") -> "Iterator[URL]":
    """A migrated database for one test."""
    with datapatterns_databases.lend() as url:
        yield url


@pytest.fixture
def datapatterns_engine(datapatterns_database_url: "URL") -> "Iterator[Engine]":
    """An engine on a migrated database that only this test uses."""
    from sqlalchemy import create_engine

    engine = create_engine(datapatterns_database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def datapatterns_shard_urls(datapatterns_databases: "Databases") -> "Iterator[list[URL]]":
    """Four migrated databases, each to stand for a shard."""
    urls = [datapatterns_databases.new() for _ in range(_SHARDS)]
    yield urls
    for url in urls:
        datapatterns_databases.drop(url)


@pytest.fixture(scope="session")
def datapatterns_redis_url() -> Iterator[str]:
    """A Redis or Valkey database that tests may empty."""
    if url := os.environ.get("REDIS_URL"):
        from datapatterns_pytest.redis_urls import of_worker

        yield of_worker(url, os.environ.get("PYTEST_XDIST_WORKER", "gw0"))
        return
    from datapatterns.embedded import EmbeddedServers

    with EmbeddedServers(durable=False) as servers:
        yield servers.valkey().url


@pytest.fixture
def datapatterns_redis_client(datapatterns_redis_url: str) -> "Iterator[Redis]":
    """A client of an empty Redis database."""
    from redis import Redis

    with closing(Redis.from_url(datapatterns_redis_url)) as client:
        client.flushdb()
        yield client


@pytest.fixture
def datapatterns_explorer(
    request: pytest.FixtureRequest, datapatterns_database_url: "URL", datapatterns_redis_url: str
) -> "Iterator[Explorer]":
    """Explores interleavings on a migrated database and the Redis database of the tests."""
    from datapatterns.testing import Explorer

    option = request.config.getoption
    with Explorer(
        datapatterns_database_url,
        datapatterns_redis_url,
        replay=option("--datapatterns-replay"),
        preemptions=option("--datapatterns-preemptions"),
        examples=option("--datapatterns-examples"),
        report=request.config.stash[explored_in].report,
    ) as explorer:
        yield explorer


@pytest.fixture
def datapatterns_postgres_server() -> "Iterator[PostgresServer]":
    """An embedded PostgreSQL server for one test, to be stopped, killed or paused."""
    from datapatterns.embedded import EmbeddedServers

    with EmbeddedServers(durable=False) as servers:
        yield servers.postgres()


@pytest.fixture
def datapatterns_valkey_server() -> "Iterator[ValkeyServer]":
    """An embedded Valkey server for one test, to be stopped, killed or paused."""
    from datapatterns.embedded import EmbeddedServers

    with EmbeddedServers() as servers:
        yield servers.valkey()


@pytest.fixture
def datapatterns_fault_proxy() -> "Iterator[FaultProxyFactory]":
    """Makes proxies before servers, to break what passes through them."""
    from datapatterns.testing import FaultProxy

    with ExitStack() as stack:
        yield lambda address: stack.enter_context(FaultProxy(address))


@pytest.fixture
def datapatterns_postgres_faults(
    datapatterns_postgres_server: "PostgresServer",
) -> "Iterator[PostgresFaults]":
    """A PostgreSQL server of its own for one test, and what may happen to it."""
    from datapatterns.testing import PostgresFaults

    with PostgresFaults(datapatterns_postgres_server) as faults:
        yield faults


@pytest.fixture
def datapatterns_redis_faults(
    datapatterns_valkey_server: "ValkeyServer",
) -> "Iterator[RedisFaults]":
    """A Valkey server of its own for one test, and what may happen to it."""
    from datapatterns.testing import RedisFaults

    with RedisFaults(datapatterns_valkey_server) as faults:
        yield faults


def _has_replayed_nothing(config: pytest.Config) -> bool:
    asked = config.getoption("--datapatterns-replay") is not None
    return asked and not config.option.collectonly and not config.stash[explored_in].schedules


def _positive(text: str) -> int:
    number = _count(text)
    if not number:
        raise ValueError("0 is not positive")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number
