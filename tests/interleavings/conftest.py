"""The stage on which designs and our own patterns meet."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest
from redis import Redis
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine

from datapatterns.cache_aside import gate
from datapatterns.change_log import locking
from datapatterns.testing import Databases
from datapatterns.testing.interleaving import Explorer
from tests.fixtures.caches import create_products
from tests.interleavings.designs import TABLES
from tests.interleavings.designs.design import Stage
from tests.interleavings.processes import Processes


@pytest.fixture(scope="module")
def stage_url(databases: Databases) -> Iterator[URL]:
    """A migrated database that a module's schedules share, one after the other."""
    with databases.lend() as url:
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(address, autocommit=True) as conn:
            # What a commit has written to disk is not the question here.
            conn.execute(f"ALTER DATABASE {url.database} SET synchronous_commit = off".encode())
        yield url


@pytest.fixture(autouse=True)
def _no_giving_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is held at a gate keeps its locks for as long as the machine likes."""
    monkeypatch.setattr(locking, "TRIES", 0)


@pytest.fixture(scope="module")
def explorer(stage_url: URL, redis_url: str) -> Iterator[Explorer]:
    with Redis.from_url(redis_url) as client:
        client.flushdb()
    with Explorer(stage_url, redis_url) as explorer:
        yield explorer


@pytest.fixture(scope="module")
def plain(stage_url: URL) -> Iterator[Engine]:
    """For set-up and checks."""
    engine = create_engine(stage_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def gated(explorer: Explorer) -> Engine:
    """For tasks."""
    return explorer.engine()


@pytest.fixture(scope="module")
def gated_async(explorer: Explorer) -> AsyncEngine:
    """For asynchronous tasks."""
    return explorer.async_engine()


@pytest.fixture(scope="module")
def gated_redis(explorer: Explorer) -> Redis:
    """For tasks."""
    return explorer.redis()


@pytest.fixture(scope="module")
def products(plain: Engine) -> Engine:
    """For set-up and checks; its database has a product."""
    create_products(plain, count=1)
    return plain


@pytest.fixture
def start(
    gated: Engine,
    products: Engine,
    gated_redis: Redis,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Processes]]:
    """Start processes with caches, none of which looks again because a second has passed."""
    monkeypatch.setattr(gate, "CHECK_SECONDS", 3_600.0)
    with ExitStack() as open_until_then:

        def start(**options: Any) -> Processes:  # noqa: ANN401 -- as Processes takes them
            processes = Processes(gated, products, gated_redis, redis_url, **options)
            return open_until_then.enter_context(closing(processes))

        yield start


@pytest.fixture
def processes(start: Callable[..., Processes]) -> Processes:
    """Processes that live by the usual policy."""
    return start()


@pytest.fixture(scope="module")
def stage(
    explorer: Explorer, gated: Engine, gated_async: AsyncEngine, stage_url: URL
) -> Iterator[Stage]:
    address = stage_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as plain:
        plain.execute(TABLES.encode())
        yield Stage(
            engine=gated,
            async_engine=gated_async,
            redis=explorer.redis(decode_responses=True),
            plain=plain,
        )
