"""Indexes over shards are compared with their tables, mended and swept, while all goes on."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import URL, delete

from datapatterns import DataLayer
from datapatterns.errors import IndexMissingError
from datapatterns.failpoints import armed
from datapatterns.index_table.over_shards import digests, walking
from datapatterns.overview import Proof, Verdict
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.old_people import forget_indexes, put, run, settle, unindexed
from tests.fixtures.sharded_people import (
    CITY,
    EMAIL,
    Customer,
    both,
    by_email,
    entries,
    rows,
    tenant_on,
    tenants,
)

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    with unindexed(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    forget_indexes(shop)
    settle(shop, 200)
    both.create(shop)
    both.build(shop)
    return shop


def test_a_whole_index_is_clean(cluster: ShardCluster) -> None:
    found = both.verify(cluster)

    assert {name: (one.rows, one.clean, one.samples) for name, one in found.items()} == {
        EMAIL: (180, True, ()),
        CITY: (200, True, ()),
    }


def test_each_kind_of_difference_is_found_and_mended(cluster: ShardCluster) -> None:
    run(cluster, "DELETE FROM customer_by_email WHERE email LIKE '1%'")
    run(cluster, "UPDATE customer_by_email SET name = 'other' WHERE email LIKE '2%'")
    run(cluster, "DELETE FROM customer WHERE email LIKE '3%'")
    run(cluster, "UPDATE customer SET email = 'new' || email WHERE email LIKE '4%'")

    found = both.verify(cluster, [EMAIL])[EMAIL]
    city = both.verify(cluster, [CITY])[CITY]

    # of 1, 10..18, 100..198; of 2, 20..28; ...
    assert (found.missing, found.different, found.orphaned) == (100 + 10, 10, 10 + 10)
    assert (found.rows, found.clean, found.mended, len(found.samples)) == (170, False, 0, 20)
    assert (city.missing, city.different, city.orphaned, city.clean) == (0, 0, 10, True)
    assert both.repair(cluster, dry_run=True)[EMAIL] == found

    repaired = both.repair(cluster, [EMAIL])[EMAIL]

    assert (repaired.clean, repaired.orphaned) == (True, 0)
    assert repaired.mended == 110 + 10 + 20
    assert entries(cluster) == rows(cluster)
    assert both.verify(cluster, [EMAIL])[EMAIL].clean


def test_a_row_whose_key_another_row_has_stays_missing(cluster: ShardCluster) -> None:
    put(cluster, [{"tenant_id": 2, "id": 900, "email": "0@example.org"}])

    found = both.repair(cluster, [EMAIL])[EMAIL]

    assert (found.missing, found.clean) == (1, False)
    [sample] = found.samples
    assert (sample.kind, sample.key, sample.primary_key) == (
        "missing",
        ("0@example.org",),
        ("2", "900"),
    )


def test_an_index_that_was_emptied_is_whole_again(cluster: ShardCluster) -> None:
    run(cluster, "TRUNCATE customer_by_email, customer_by_city")

    assert {name: one.missing for name, one in both.verify(cluster).items()} == {
        EMAIL: 180,
        CITY: 200,
    }
    assert all(one.clean for one in both.repair(cluster).values())
    assert entries(cluster) == rows(cluster)


def test_pages_end_where_they_should(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cluster, "DELETE FROM customer_by_email WHERE email LIKE '1%'")
    run(cluster, "DELETE FROM customer WHERE email LIKE '3%'")
    monkeypatch.setattr(digests, "PARTS", 4)
    monkeypatch.setattr(walking, "PAGE_ROWS", 5)

    found = both.verify(cluster, [EMAIL])[EMAIL]

    assert (found.missing, found.orphaned) == (100, 10)


def test_what_is_in_flight_is_no_damage(cluster: ShardCluster) -> None:
    """Between its claim and its commit an entry leads nowhere; between others a row differs."""
    reports = []

    def look() -> None:
        reports.append(both.verify(cluster, [EMAIL])[EMAIL])

    for name in ("index.keys-claimed", "index.base-committed"):
        with armed(name, look), cluster.session() as session, session.begin():
            session.get_one(Customer, (5, 5)).email = f"at {name}"

    claimed, committed = reports
    # The first holds its key's lock, so nobody can tell; the other leads nowhere by now.
    assert (claimed.missing, claimed.orphaned, claimed.undecided) == (0, 0, 1)
    assert (committed.missing, committed.orphaned, committed.clean) == (0, 1, True)
    assert entries(cluster) == rows(cluster)


def test_a_bucket_that_moves_is_compared_once(cluster: ShardCluster) -> None:
    group = both.indexes[EMAIL].group

    def move() -> None:
        for each, bucket in ((tenants, 3), (group, 5)):
            owner = cluster.router.map_of(each).owners[bucket]
            to = "s1" if owner == "s0" else "s0"
            cluster.move(each, bucket, to=to, clean_after_seconds=0)

    run(cluster, "DELETE FROM customer_by_email WHERE email LIKE '11%'")
    with armed("index.walked", move):
        found = both.verify(cluster, [EMAIL])[EMAIL]
    assert (found.rows, found.missing, found.different, found.orphaned) == (180, 10, 0, 0)
    with armed("index.digested", move):
        found = both.verify(cluster, [EMAIL])[EMAIL]
    assert (found.rows, found.missing, found.different, found.orphaned) == (180, 10, 0, 0)


def test_entries_that_lead_nowhere_are_swept(cluster: ShardCluster) -> None:
    run(cluster, "DELETE FROM customer WHERE email LIKE '3%'")
    before = entries(cluster)

    looked = both.sweep(cluster, dry_run=True)
    assert (looked[EMAIL].orphaned, looked[EMAIL].removed) == (10, 0)
    assert entries(cluster) == before
    young = both.sweep(cluster, older_than_seconds=3600)
    assert young[EMAIL].orphaned == 0
    swept = both.sweep(cluster)

    assert {name: (one.orphaned, one.removed) for name, one in swept.items()} == {
        EMAIL: (10, 10),
        CITY: (10, 10),
    }
    assert entries(cluster) == rows(cluster)


def test_an_entry_that_is_claimed_again_is_not_swept(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.execute(delete(Customer).where(Customer.tenant_id == 5, Customer.id == 5))
    put(cluster, [{"tenant_id": 5, "id": 5, "email": "5@example.org"}])
    both.repair(cluster, [EMAIL])
    run(cluster, "DELETE FROM customer WHERE id = 5")

    def come_back() -> None:
        with cluster.session() as session, session.begin():
            session.add(Customer(tenant_id=5, id=5, email="5@example.org"))

    with armed("index.orphans-seen", come_back):
        swept = both.sweep(cluster, [EMAIL])[EMAIL]

    assert (swept.orphaned, swept.removed) == (1, 0)
    assert both.verify(cluster, [EMAIL])[EMAIL].missing == 0
    with cluster.session() as session:
        assert len(by_email.lookup(session, "5@example.org")) == 1


def test_the_overview_calls_nothing_wrong_that_is_in_flight(cluster: ShardCluster) -> None:
    proofs: list[Proof] = []

    def look() -> None:
        with closing(DataLayer(cluster.engines["s0"].url)) as layer:
            proofs.extend(layer.verify(clusters=[cluster], wanted=lambda one: one.name == EMAIL))

    with armed("index.keys-claimed", look), cluster.session() as session, session.begin():
        session.get_one(Customer, (5, 5)).email = "in flight"
    look()

    assert [one.verdict for one in proofs] == [Verdict.LEFT_OUT, Verdict.RIGHT]
    assert "about to change" in str(proofs[0].reason)


def test_claims_of_running_transactions_are_left_alone(cluster: ShardCluster) -> None:
    found = []

    def sweep() -> None:
        found.append(both.sweep(cluster, [EMAIL])[EMAIL])
        found.append(both.sweep(cluster, [EMAIL], older_than_seconds=0)[EMAIL])

    with (
        armed("index.keys-claimed", sweep),
        cluster.on(tenants, tenant_id=tenant_on(cluster, "s0")) as session,
        session.begin(),
    ):
        session.add(Customer(tenant_id=tenant_on(cluster, "s0"), id=901, email="coming"))

    by_age, by_lock = found
    assert (by_age.orphaned, by_age.removed, by_age.undecided) == (0, 0, 0)
    assert (by_lock.orphaned, by_lock.removed, by_lock.undecided) == (0, 0, 1)
    assert entries(cluster) == rows(cluster)


def test_what_was_never_created_cannot_be_compared(cluster: ShardCluster) -> None:
    both.drop(cluster, [EMAIL])
    for work in (both.verify, both.repair, both.sweep):
        with pytest.raises(IndexMissingError):
            work(cluster, [EMAIL])
