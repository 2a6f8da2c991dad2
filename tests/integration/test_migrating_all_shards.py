"""One command migrates all shards, with a real Alembic environment."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from datapatterns.errors import ShardMigrationFailedError
from datapatterns.sharding import MigrationPace, ShardCluster
from tests.fixtures.shop_revisions import (
    IN_PROCESS,
    TEMPLATE,
    ShopRevisions,
    cluster_of,
    sql_on,
    tables_on,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def shop(tmp_path: Path) -> ShopRevisions:
    return ShopRevisions(tmp_path)


@pytest.fixture
def urls(shard_urls: list[URL]) -> list[URL]:
    return shard_urls[:3]


@pytest.fixture
def cluster(urls: list[URL], shop: ShopRevisions) -> Iterator[ShardCluster]:
    with cluster_of(urls, shop) as cluster:
        yield cluster


def states(cluster: ShardCluster) -> dict[str, str]:
    return {run.shard: run.state for run in cluster.migrations.last_run()}


def test_all_shards_get_the_same_tables_the_canary_first_the_others_at_once(
    cluster: ShardCluster, shop: ShopRevisions, urls: list[URL]
) -> None:
    shop.write("CREATE TABLE product (id bigint PRIMARY KEY)")
    shop.write("ALTER TABLE product ADD name text")
    told: list[tuple[str, str]] = []

    done = cluster.migrations.upgrade(
        pace=MigrationPace(canary="s1"),
        report=lambda shard, state, _: told.append((shard, state)),
    )
    again = cluster.migrations.upgrade()

    assert [tables_on(url) for url in urls] == [{"product"}] * 3
    assert told[:2] == [("s1", "running"), ("s1", "done")]
    assert sorted(told[2:]) == [(f"s{n}", s) for n in (0, 2) for s in ("done", "running")]
    assert {(run.shard, run.state, run.attempts) for run in done} == {
        (f"s{n}", "done", 1) for n in range(3)
    }
    assert {(run.state, run.attempts) for run in again} == {("done", 0)}
    assert all(plan.is_done for plan in cluster.migrations.plan())


def test_an_env_that_connects_by_itself_works_too(urls: list[URL], tmp_path: Path) -> None:
    shop = ShopRevisions(tmp_path, TEMPLATE)
    shop.write("CREATE TABLE product (id bigint PRIMARY KEY)")

    with cluster_of(urls, shop) as cluster:
        cluster.migrations.upgrade(pace=IN_PROCESS)

    assert [tables_on(url) for url in urls] == [{"product"}] * 3


def test_the_first_error_stops_and_a_repeated_run_does_what_is_left(
    cluster: ShardCluster, shop: ShopRevisions, urls: list[URL]
) -> None:
    shop.write("CREATE TABLE product (id bigint PRIMARY KEY)")
    sql_on(urls[1], "CREATE TABLE product ()")

    with pytest.raises(ShardMigrationFailedError) as failed:
        cluster.migrations.upgrade(pace=IN_PROCESS)

    assert failed.value.shard == "s1", failed.value
    assert "already exists" in failed.value.said
    assert failed.value.states == {"s0": "done", "s1": "failed", "s2": "pending"} == states(cluster)
    assert tables_on(urls[2]) == set()

    sql_on(urls[1], "DROP TABLE product")
    done = cluster.migrations.upgrade(pace=IN_PROCESS)

    assert [(run.state, run.attempts) for run in done] == [("done", 1), ("done", 2), ("done", 1)]
    assert [tables_on(url) for url in urls] == [{"product"}] * 3
