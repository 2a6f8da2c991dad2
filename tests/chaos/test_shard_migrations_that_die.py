"""Who migrates all shards dies, between two of them or on one; the next does what is left."""

from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.fixtures import doomed_workers as workers
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.shop_revisions import ShopRevisions, cluster_of, tables_on

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]


@pytest.mark.parametrize(("failpoint", "visit"), workers.MIGRATING_SHARDS)
def test_shards_that_were_half_migrated_are_migrated_by_the_next_run(
    shard_urls: list[URL], tmp_path: Path, failpoint: str, visit: int
) -> None:
    shop = ShopRevisions(tmp_path)
    shop.write("CREATE TABLE product (id bigint PRIMARY KEY)")
    shop.write("CREATE TABLE line (id bigint PRIMARY KEY)")
    urls = [url.render_as_string(hide_password=False) for url in shard_urls[:3]]
    run_until_failpoint(workers.migrate_shards, failpoint, str(shop.ini), *urls, visit=visit)

    with cluster_of(shard_urls[:3], shop) as cluster:
        died = {run.shard: run.state for run in cluster.migrations.last_run()}
        workers.migrate_shards(str(shop.ini), *urls)
        done = {run.shard: run.state for run in cluster.migrations.last_run()}

    assert set(died.values()) != {"done"}
    assert done == {"s0": "done", "s1": "done", "s2": "done"}
    assert [tables_on(url) for url in shard_urls[:3]] == [{"product", "line"}] * 3
