"""A server that a move takes part in crashes, and answers commits before they are safe.

So it does for a database, or a role, that has ``synchronous_commit`` off.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from datapatterns.embedded import EmbeddedServers, PostgresServer
from datapatterns.errors import DataPatternsError
from datapatterns.failpoints import armed
from datapatterns.sharding import ShardCluster
from datapatterns.sql.migrating import upgrade
from datapatterns.testing import Databases, wait_until
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.shard_model import create_tables, households, named

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

BUCKET = 5
SOURCE, TARGET = "s1", "s0"
UNSAFE = {"synchronous_commit": "off", "wal_writer_delay": "10s", "autovacuum": "off"}


@pytest.fixture
def doomed() -> Iterator[PostgresServer]:
    with EmbeddedServers(durable=False) as servers:
        server = servers.postgres(settings=UNSAFE)
        engine = create_engine(server.url)
        with engine.begin() as conn:
            upgrade(conn)
        engine.dispose()
        yield server


@pytest.fixture
def safe(databases: Databases) -> Iterator[list[URL]]:
    urls = [databases.new(), databases.new()]
    yield urls
    for url in urls:
        databases.drop(url)


@contextmanager
def shop(control: URL, shards: list[URL]) -> Iterator[ShardCluster]:
    for url in shards:
        create_tables(url)
    with ShardCluster(control=control, shards=named(shards), groups=[households]) as cluster:
        cluster.create_map()
        assert cluster.router.map_of(households).owners[BUCKET] == SOURCE
        put(cluster, keys_in(BUCKET, 1)[0], lines=3)
        yield cluster


def move_until_crash(cluster: ShardCluster, failpoint: str, server: PostgresServer) -> None:
    """Let a server crash while the mover is at a failpoint, and come back."""
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.execute(text("CHECKPOINT"))  # what was until now is safe
    engine.dispose()

    def crash() -> None:
        server.kill()
        server.start()

    with armed(failpoint, crash), suppress(DataPatternsError, SQLAlchemyError):
        cluster.move(households, BUCKET, to=TARGET, clean_after_seconds=0, lease_seconds=1)
    for engine in cluster.engines.values():
        engine.dispose()


@pytest.mark.parametrize("failpoint", ["move.cut", "move.target-owns", "move.handed-over"])
@pytest.mark.parametrize("crashing", [SOURCE, TARGET])
def test_a_shard_that_crashes_takes_nothing_back_that_a_move_has_done(
    safe: list[URL], doomed: PostgresServer, crashing: str, failpoint: str
) -> None:
    shards = {SOURCE: safe[0], TARGET: safe[0], crashing: doomed.url}
    with shop(safe[1], [shards[TARGET], shards[SOURCE]]) as cluster:
        move_until_crash(cluster, failpoint, doomed)

        assert states_of(cluster, BUCKET)[SOURCE] != "owned"
        wait_until(lambda: not any(move.is_leased for move in cluster.moves()))
        cluster.resume_moves(clean_after_seconds=0)
        assert states_of(cluster, BUCKET) == {SOURCE: "cleaned", TARGET: "owned"}
        assert bucket_rows(cluster, TARGET, BUCKET) == (1, 3)


def test_no_lease_is_given_again_by_a_control_database_that_has_crashed(
    safe: list[URL], doomed: PostgresServer
) -> None:
    """Two workers of one number would not notice each other."""
    with shop(doomed.url, safe) as cluster:
        move_until_crash(cluster, "move.captured", doomed)
        before = lease(cluster)
        assert before > 0
        wait_until(lambda: not any(move.is_leased for move in cluster.moves()))

        [move] = cluster.resume_moves(clean_after_seconds=0)

        assert move.state == "cleaned"
        assert lease(cluster) > before


def lease(cluster: ShardCluster) -> int:
    with cluster.engines[SOURCE].connect() as conn:
        asked = text("SELECT lease_epoch FROM datapatterns.bucket WHERE bucket = :bucket")
        return int(conn.scalars(asked, {"bucket": BUCKET}).one())
