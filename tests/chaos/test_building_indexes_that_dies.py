"""Processes die while they build, mend, sweep or drop an index over shards; others end it."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import URL

from datapatterns.index_table import BuildPace
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures import doomed_workers as workers
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.old_people import forget_indexes, run, settle, unindexed
from tests.fixtures.sharded_people import EMAIL, Customer, both, by_email, entries, rows

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]


@pytest.fixture(scope="module")
def urls(databases: Databases) -> Iterator[list[URL]]:
    urls = [databases.new() for _ in range(2)]
    yield urls
    for url in urls:
        databases.drop(url)


@pytest.fixture(scope="module")
def shop(urls: list[URL]) -> Iterator[ShardCluster]:
    with unindexed(urls) as cluster:
        yield cluster


@pytest.fixture
def die(urls: list[URL]) -> Callable[[Callable[..., object], str, int], None]:
    written = [url.render_as_string(hide_password=False) for url in urls]

    def let_die(worker: Callable[..., object], failpoint: str, visit: int) -> None:
        run_until_failpoint(worker, failpoint, written[0], *written, visit=visit)

    return let_die


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    forget_indexes(shop)
    settle(shop, 150)
    both.create(shop)
    return shop


Die = Callable[[Callable[..., object], str, int], None]


@pytest.mark.parametrize(("failpoint", "visit"), workers.BUILDING_INDEXES)
def test_whoever_comes_next_builds_what_is_left(
    cluster: ShardCluster, die: Die, failpoint: str, visit: int
) -> None:
    die(workers.build_indexes, failpoint, visit)
    with cluster.session() as session, session.begin():
        session.add(Customer(tenant_id=3, id=900, email="meanwhile"))

    both.build(cluster, [EMAIL], pace=BuildPace(chunk_rows=20))

    [status] = both.status(cluster, [EMAIL])
    assert (status.state, status.failure) == ("ready", None)
    assert entries(cluster) == rows(cluster)
    with cluster.session() as session:
        assert len(by_email.lookup(session, "meanwhile")) == 1


@pytest.mark.parametrize(("failpoint", "visit"), workers.MENDING_INDEXES)
def test_whoever_comes_next_mends_what_is_left(
    cluster: ShardCluster, die: Die, failpoint: str, visit: int
) -> None:
    both.build(cluster, [EMAIL])
    run(cluster, "DELETE FROM customer_by_email WHERE email LIKE '1%'")
    run(cluster, "DELETE FROM customer WHERE email LIKE '3%'")

    die(workers.mend_indexes, failpoint, visit)

    assert both.repair(cluster, [EMAIL])[EMAIL].clean
    assert entries(cluster) == rows(cluster)


@pytest.mark.parametrize(("failpoint", "visit"), workers.SWEEPING_INDEXES)
def test_whoever_comes_next_sweeps_what_is_left(
    cluster: ShardCluster, die: Die, failpoint: str, visit: int
) -> None:
    both.build(cluster, [EMAIL])
    run(cluster, "DELETE FROM customer WHERE email LIKE '3%'")

    die(workers.sweep_indexes, failpoint, visit)

    assert both.sweep(cluster, [EMAIL])[EMAIL].removed == 10
    assert entries(cluster) == rows(cluster)


@pytest.mark.parametrize(("failpoint", "visit"), workers.DROPPING_INDEXES)
def test_whoever_comes_next_drops_what_is_left(
    cluster: ShardCluster, die: Die, failpoint: str, visit: int
) -> None:
    both.build(cluster, [EMAIL])

    die(workers.drop_indexes, failpoint, visit)

    [status] = both.status(cluster, [EMAIL])
    assert status.state == "dropping"
    with cluster.session() as session, session.begin():
        session.add(Customer(tenant_id=3, id=900, email="meanwhile"))
    assert both.drop(cluster, [EMAIL]) == {EMAIL: True}
    assert entries(cluster) == []
    both.create(cluster)
    both.build(cluster, [EMAIL])
    assert entries(cluster) == rows(cluster)
