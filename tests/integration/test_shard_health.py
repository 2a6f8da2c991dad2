"""How shards are, what about their servers should be mended, and who ends what the dead began."""

import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest
from sqlalchemy import URL, create_engine, text

from datapatterns import DataLayer
from datapatterns.embedded import EmbeddedServers
from datapatterns.failpoints import armed
from datapatterns.runtime import ShardRecoveryLoop
from datapatterns.sharding import ShardCluster, check_shards
from datapatterns.sharding.atomic import Recovery
from datapatterns.sharding.reaching.health import _differing, _Server
from datapatterns.sql.migrating import upgrade
from tests.fixtures.atomic import (
    Died,
    baskets,
    needs_prepared_transactions,
    prepared,
    put_on_each,
)
from tests.fixtures.empty_database import shown
from tests.fixtures.shard_model import households, sharded_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with sharded_shop(shard_urls[:3]) as cluster:
        yield cluster
        cluster.recover(grace_seconds=0)


def leave_behind(cluster: ShardCluster) -> None:
    def die() -> None:
        raise Died

    with armed("atomic.decided", die), suppress(Died):
        put_on_each(cluster)
    for engine in cluster.engines.values():
        engine.dispose()


def test_shards_that_answer_are_healthy(cluster: ShardCluster) -> None:
    with cluster.engines["s1"].connect():
        found = {each.shard: each for each in cluster.health()}

    assert [each.answers for each in found.values()] == [True] * 3
    assert {each.problem for each in found.values()} == {None}
    assert (found["s0"].in_use, found["s1"].in_use, found["s1"].in_use_max) == (0, 1, 15)


def test_a_shard_that_is_away_is_told_with_the_reason(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    away: dict[str, str | URL] = {"s0": shard_urls[0], "s1": shard_urls[1]}
    away["s2"] = "postgresql://[::1]:1/x"
    with ShardCluster(control=shard_urls[0], shards=away, groups=[households]) as other:
        for _ in range(4):
            other.health()
        found = other.health()
    assert cluster.health()[2].answers

    assert [each.answers for each in found] == [True, True, False]
    assert found[2].left_alone
    assert "'s2' does not answer" in str(found[2].problem)


def test_what_is_left_prepared_is_seen(cluster: ShardCluster) -> None:
    leave_behind(cluster)

    found = cluster.health()

    assert sum(each.prepared for each in found) == 2
    assert max(each.oldest_prepared_seconds for each in found) > 0


def test_a_server_that_prepares_no_transactions_is_found() -> None:
    with EmbeddedServers(durable=False) as servers:
        url = servers.postgres("careless", settings={"max_prepared_transactions": 0}).url
        engine = create_engine(url)
        with engine.begin() as conn:
            upgrade(conn)
        with sharded_shop([url]) as careless:
            [finding] = [each for each in careless.check() if "prepared" in each.problem]
            assert check_shards({"s0": engine})[0].shard == "s0"
        engine.dispose()

    assert "ALTER SYSTEM SET max_prepared_transactions = 64" in finding.advice


def test_servers_that_differ_are_told_apart() -> None:
    usual = _Server(180001, "x", 100, 0, 0.0, "UTF8", "UTC", "en_US.UTF-8", "2.36", "2.36")
    odd = _Server(160001, "x", 100, 0, 0.0, "LATIN1", "Asia/Tokyo", "en_US.UTF-8", "2.28", "2.28")

    found = [*_differing({"s0": usual, "s1": odd, "s2": usual})]

    assert {finding.shard for finding in found} == {"s1"}
    assert [word in " ".join(map(str, found)) for word in ("2.28", "LATIN1", "Tokyo", "16")] == [
        True
    ] * 4
    assert [*_differing({"s0": usual, "s1": usual})] == []


def test_a_database_that_is_no_shard_is_not_looked_at(database_url: URL) -> None:
    engine = create_engine(database_url)
    assert check_shards({"other": engine}) == []
    engine.dispose()


def test_a_worker_of_a_layer_with_shards_ends_what_the_dead_began(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    leave_behind(cluster)
    assert len(prepared(cluster)) == 2
    shards = {f"s{n}": shown(url) for n, url in enumerate(shard_urls[:3])}

    with DataLayer(shown(shard_urls[3]), shards=shards) as layer:
        worker = layer.worker()
        worker.run(until=lambda _conn: not prepared(cluster))

    assert len(baskets(cluster)) == 3


def test_the_loop_tells_of_what_it_cannot_end(
    cluster: ShardCluster, caplog: pytest.LogCaptureFixture
) -> None:
    leave_behind(cluster)
    without = {name: engine for name, engine in cluster.engines.items() if name != "s0"}
    with caplog.at_level(logging.WARNING):
        ShardRecoveryLoop(Recovery(without).run).step()

    [record] = [each for each in caplog.records if "left prepared" in each.message]
    assert len(record.__dict__["foreign"]) == 2
    with cluster.engines["s0"].connect() as conn:
        assert conn.scalar(text("SELECT 1")) == 1
