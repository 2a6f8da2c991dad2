"""The stage on which designs and our own patterns meet."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from redis import Redis
from sqlalchemy import URL, Engine, event
from sqlalchemy.exc import DisconnectionError

from datapatterns.testing import Databases
from datapatterns.testing.interleaving import Explorer
from tests.interleavings.designs import TABLES
from tests.interleavings.designs.design import Stage


@pytest.fixture(scope="module")
def stage_url(databases: Databases) -> Iterator[URL]:
    """A migrated database that a module's schedules share, one after the other."""
    with databases.lend() as url:
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(address, autocommit=True) as conn:
            # What a commit has written to disk is not the question here.
            conn.execute(f"ALTER DATABASE {url.database} SET synchronous_commit = off".encode())
        yield url


@pytest.fixture(scope="module")
def explorer(stage_url: URL, redis_url: str) -> Iterator[Explorer]:
    with Redis.from_url(redis_url) as client:
        client.flushdb()
    with Explorer(stage_url, redis_url) as explorer:
        yield explorer


@pytest.fixture(scope="module")
def stage(explorer: Explorer, stage_url: URL) -> Iterator[Stage]:
    engine, async_engine = explorer.engine(), explorer.async_engine()
    for pooled in (engine, async_engine.sync_engine):
        let_nobody_inherit(pooled)
    address = stage_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as plain:
        plain.execute(TABLES.encode())
        yield Stage(
            engine=engine,
            async_engine=async_engine,
            redis=explorer.redis(decode_responses=True),
            plain=plain,
        )


def let_nobody_inherit(engine: Engine) -> None:
    """Keep the connections of a task that died from the living: its pool would have died, too."""

    @event.listens_for(engine, "checkout")
    def look(connection: psycopg.Connection[Any], _record: object, _proxy: object) -> None:
        if connection.closed:
            raise DisconnectionError
