"""`datapatterns indexes --cluster`: those over shards, for people and for programs."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from sqlalchemy import URL

from datapatterns.index_table import ShardIndexes
from datapatterns.overview import Concern
from datapatterns.overview.comparing import Compared, LeftOut, shard_index_compared
from datapatterns.overview.of_indexes import shard_index_standings
from datapatterns.runtime import ShardIndexLoop
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.commands import Run
from tests.fixtures.commands import rows as told
from tests.fixtures.old_people import forget_indexes, settle, unindexed
from tests.fixtures.old_people import run as changed
from tests.fixtures.sharded_people import CITY, EMAIL, both, entries, rows, tenants

pytestmark = pytest.mark.postgres

CLUSTER = ("--cluster", "people_of_old:cluster")


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    with unindexed(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster, monkeypatch: pytest.MonkeyPatch) -> ShardCluster:
    forget_indexes(shop)
    settle(shop, 60)
    urls = {name: engine.url for name, engine in shop.engines.items()}

    class App(ModuleType):
        @staticmethod
        def cluster() -> ShardCluster:
            return ShardCluster(control=urls["s0"], shards=urls, groups=[tenants], indexes=both)

    monkeypatch.setitem(sys.modules, "people_of_old", App("people_of_old"))
    return shop


def test_an_index_is_built_proven_and_swept(run: Run, cluster: ShardCluster) -> None:
    listed = run("indexes", "list", *CLUSTER, "--json")
    assert [(one["name"], one["state"]) for one in told(listed)] == [
        (EMAIL, "missing"),
        (CITY, "missing"),
    ]
    both.create(cluster)
    assert "datapatterns indexes backfill" in run("indexes", "list", *CLUSTER).err

    would = run("indexes", "backfill", EMAIL, *CLUSTER, "--dry-run", "--json")
    built = run("indexes", "backfill", EMAIL, *CLUSTER, "--chunk-rows", "7", "--json")

    assert [(one["rows"], one["done"]) for one in told(would) + told(built)] == [
        (None, False),
        (54, True),
    ]
    listed = run("indexes", "list", EMAIL, *CLUSTER, "--json")
    assert [(one["state"], one["shards"], one["rows_done"]) for one in told(listed)] == [
        ("ready", "s0 ready, s1 ready", 54)
    ]
    assert [one["mode"] for one in told(run("indexes", "explain", *CLUSTER, "--json"))] == [
        "reserve",
        "reserve",
    ]
    changed(cluster, "DELETE FROM customer WHERE email LIKE '3%'")
    assert run("indexes", "verify", EMAIL, *CLUSTER).code == 0  # they do no harm
    [swept] = told(run("indexes", "sweep", EMAIL, *CLUSTER, "--dry-run", "--json"))
    assert (swept["orphaned"], swept["removed"]) == (10, 0)
    [swept] = told(run("indexes", "sweep", EMAIL, *CLUSTER, "--older-than-seconds", "0", "--json"))
    assert (swept["orphaned"], swept["removed"]) == (10, 10)


def test_what_differs_is_told_and_mended(run: Run, cluster: ShardCluster) -> None:
    both.create(cluster)
    both.build(cluster)
    changed(cluster, "DELETE FROM customer_by_email WHERE email LIKE '1%'")

    verified = run("indexes", "verify", EMAIL, *CLUSTER)
    assert verified.code == 5
    assert f"datapatterns indexes repair {EMAIL}" in verified.err
    would = run("indexes", "repair", EMAIL, *CLUSTER, "--dry-run", "--json")
    assert [(one["missing"], one["mended"]) for one in told(would)] == [(10, 0)]
    [mended] = told(run("indexes", "repair", EMAIL, *CLUSTER, "--json"))

    assert (mended["mended"], mended["missing"], mended["clean"]) == (10, 0, True)
    assert entries(cluster) == rows(cluster)


def test_conflicts_are_told(run: Run, cluster: ShardCluster) -> None:
    forget_indexes(cluster)
    settle(cluster, 20, twice=1)
    both.create(cluster)

    failed = run("indexes", "backfill", EMAIL, *CLUSTER)
    assert failed.code == 5
    assert "let each two rows with one key" in failed.err
    [conflict] = told(run("indexes", "conflicts", EMAIL, *CLUSTER, "--json"))
    assert conflict["key"] == "email=0@example.org"
    assert "1 rows have a key" in run("indexes", "list", EMAIL, *CLUSTER).err


def test_what_makes_no_sense_is_refused(run: Run, cluster: ShardCluster) -> None:
    assert cluster.companions == (both,)
    assert "leave out --database" in run("indexes", "list", *CLUSTER, "--database", "s0").err
    assert run("indexes", "verify", "nobody", *CLUSTER).code == 2


def test_the_overview_knows_how_they_stand(cluster: ShardCluster) -> None:
    def concerns() -> list[tuple[str, Concern]]:
        return [(one.state, one.concern) for one in shard_index_standings(cluster)]

    assert concerns() == [("missing", Concern.WRONG)] * 2
    assert isinstance(shard_index_compared(cluster, EMAIL), LeftOut)
    both.create(cluster)
    assert concerns() == [("building", Concern.WAITING)] * 2
    both.build(cluster)
    assert concerns() == [("ready", Concern.FINE)] * 2
    changed(cluster, "DELETE FROM customer_by_email WHERE email LIKE '1%'")
    found = shard_index_compared(cluster, EMAIL)
    assert isinstance(found, Compared)
    assert (found.rows, found.differing) == (54, 10)


def test_a_worker_sweeps_what_crashes_leave(cluster: ShardCluster) -> None:
    both.create(cluster)
    both.build(cluster, [EMAIL])
    changed(cluster, "DELETE FROM customer WHERE email LIKE '3%'")

    assert ShardIndexLoop(cluster, seconds=7).step() == 7

    assert entries(cluster) == rows(cluster)
    assert ShardIndexes.of(cluster) is both
