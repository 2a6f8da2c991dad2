"""Fixtures on real servers; use them by ``pytest_plugins = ["datapatterns.testing.plugin"]``.

The servers are those that ``DATABASE_URL`` and ``REDIS_URL`` name, or else embedded ones.
Each worker of pytest-xdist has databases of its own, and a Redis database of its own: with
``REDIS_URL`` the number in the URL plus that of the worker.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from redis import Redis
from sqlalchemy import URL, Engine, create_engine, make_url

from datapatterns.embedded import EmbeddedServers, PostgresServer, ValkeyServer
from datapatterns.testing.databases import Databases
from datapatterns.testing.faults import FaultProxy, FaultProxyFactory, PostgresFaults, RedisFaults
from datapatterns.testing.faults.addresses import Address
from datapatterns.testing.redis_urls import with_redis_database


@pytest.fixture(scope="session")
def datapatterns_server_url() -> Iterator[URL]:
    """A PostgreSQL server on which tests may create databases."""
    if url := os.environ.get("DATABASE_URL"):
        yield make_url(url).set(drivername="postgresql+psycopg")
        return
    with EmbeddedServers(durable=False) as servers:
        yield servers.postgres().url


@pytest.fixture(scope="session")
def datapatterns_databases(datapatterns_server_url: URL) -> Iterator[Databases]:
    """Where migrated databases come from."""
    with Databases(datapatterns_server_url) as databases:
        yield databases


@pytest.fixture
def datapatterns_database_url(datapatterns_databases: Databases) -> Iterator[URL]:
    """A migrated database for one test."""
    with datapatterns_databases.lend() as url:
        yield url


@pytest.fixture
def datapatterns_engine(datapatterns_database_url: URL) -> Iterator[Engine]:
    """An engine on a migrated database that only this test uses."""
    engine = create_engine(datapatterns_database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def datapatterns_shard_urls(datapatterns_databases: Databases) -> Iterator[list[URL]]:
    """Four migrated databases, each to stand for a shard."""
    urls = [datapatterns_databases.new() for _ in range(4)]
    yield urls
    for url in urls:
        datapatterns_databases.drop(url)


@pytest.fixture(scope="session")
def datapatterns_redis_url() -> Iterator[str]:
    """A Redis or Valkey database that tests may empty."""
    if url := os.environ.get("REDIS_URL"):
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        with closing(Redis.from_url(url)) as client:
            first = int(client.connection_pool.connection_kwargs.get("db") or 0)
        yield with_redis_database(url, first + worker)
        return
    with EmbeddedServers(durable=False) as servers:
        yield servers.valkey().url


@pytest.fixture
def datapatterns_redis_client(datapatterns_redis_url: str) -> Iterator[Redis]:
    """A client of an empty Redis database."""
    with closing(Redis.from_url(datapatterns_redis_url)) as client:
        client.flushdb()
        yield client


@pytest.fixture
def datapatterns_postgres_server() -> Iterator[PostgresServer]:
    """An embedded PostgreSQL server for one test, to be stopped, killed or paused."""
    with EmbeddedServers(durable=False) as servers:
        yield servers.postgres()


@pytest.fixture
def datapatterns_valkey_server() -> Iterator[ValkeyServer]:
    """An embedded Valkey server for one test, to be stopped, killed or paused."""
    with EmbeddedServers() as servers:
        yield servers.valkey()


@pytest.fixture
def datapatterns_fault_proxy() -> Iterator[FaultProxyFactory]:
    """Makes proxies before servers, to break what passes through them."""
    with ExitStack() as stack:

        def make(address: Address) -> FaultProxy[Address]:
            return stack.enter_context(FaultProxy(address))

        yield make


@pytest.fixture
def datapatterns_postgres_faults(
    datapatterns_postgres_server: PostgresServer,
) -> Iterator[PostgresFaults]:
    """A PostgreSQL server of its own for one test, and what may happen to it."""
    with PostgresFaults(datapatterns_postgres_server) as faults:
        yield faults


@pytest.fixture
def datapatterns_redis_faults(datapatterns_valkey_server: ValkeyServer) -> Iterator[RedisFaults]:
    """A Valkey server of its own for one test, and what may happen to it."""
    with RedisFaults(datapatterns_valkey_server) as faults:
        yield faults
