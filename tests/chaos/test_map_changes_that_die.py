"""A process that changes a map dies at each of its steps."""

import pytest
from sqlalchemy import URL, select

from datapatterns.sharding import ShardCluster
from tests.fixtures import doomed_workers as workers
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.shard_model import Basket, households, named, sharded_shop

pytestmark = [pytest.mark.chaos, pytest.mark.postgres]


@pytest.mark.parametrize(("failpoint", "visit"), workers.CHANGING_A_MAP)
def test_whoever_comes_next_finishes_the_change(
    shard_urls: list[URL], failpoint: str, visit: int
) -> None:
    urls = shard_urls[:2]
    with sharded_shop(urls) as cluster, cluster.session() as session, session.begin():
        session.add(Basket(household_id=7, id=1))
    texts = [url.render_as_string(hide_password=False) for url in urls]
    run_until_failpoint(workers.pin_household, failpoint, texts[0], *texts, visit=visit)

    with ShardCluster(control=urls[0], shards=named(urls), groups=[households]) as cluster:
        with cluster.session() as session, session.begin():
            session.add(Basket(household_id=7, id=2))
        change = cluster.pin(households, 7)
        shard_map = cluster.router.map_of(households)
        assert change.gaining == 64 == shard_map.strategy.bucket(7)
        assert len(shard_map.owners) == 65
        with cluster.session() as session:
            found = session.scalars(select(Basket.id).where(Basket.household_id == 7)).all()
        assert sorted(found) == [1, 2]
        assert cluster.pin(households, 8).changed
