"""What refers to nothing is found, and nothing else, while rows are written and buckets move."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from sqlalchemy import URL, insert, select

from datapatterns.errors import SettingsError, StaleShardMapError
from datapatterns.failpoints import armed
from datapatterns.sharding import MoveProgress, ReferenceAudit, ShardCluster
from datapatterns.sharding.atomic.settling import Settling
from datapatterns.sharding.references import auditing
from datapatterns.sharding.references.audit_runs import AuditRuns
from tests.fixtures.atomic import Died, needs_prepared_transactions
from tests.fixtures.referring import (
    Branch,
    Customer,
    Order,
    add_customers,
    all_orders,
    customers,
    die,
    keys_on,
    orphan,
    referring_cluster,
    referring_shop,
    remove_past,
    stores,
)

pytestmark = pytest.mark.postgres

MISSING = 999_999
OF_ORDERS = "store_order_customer_id"


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with referring_shop(shard_urls[:3]) as cluster:
        yield cluster
        cluster.recover(grace_seconds=0)
        assert all(engine.pool.checkedout() == 0 for engine in cluster.engines.values())  # type: ignore[attr-defined]


def audited(cluster: ShardCluster, *, rows_at_once: int = 1_000, limit: int = 100) -> list[int]:
    """Return the stores of orders that refer to nobody."""
    (found,) = cluster.audit_references(OF_ORDERS, rows_at_once=rows_at_once, limit=limit)
    assert found.undecided == ()
    return sorted(broken.row[0] for broken in found.broken)


def test_nothing_is_found_where_nothing_is(cluster: ShardCluster) -> None:
    found = cluster.audit_references()

    assert len(found) == 5
    assert all(each.is_whole and each.rows == 0 for each in found)


def test_rows_without_a_parent_are_found_on_all_shards(cluster: ShardCluster) -> None:
    known, shops = keys_on(cluster, customers), keys_on(cluster, stores)
    add_customers(cluster, *known)
    for number, shop in enumerate(shops):
        orphan(cluster, shop, known[number], number=1)
        orphan(cluster, shop, MISSING, number=2)
    remove_past(cluster, known[2])

    (found,) = cluster.audit_references(OF_ORDERS)

    broken = sorted((*each.row, *each.refers_to) for each in found.broken)
    assert broken == sorted([*((s, 2, MISSING) for s in shops), (shops[2], 1, known[2])])
    assert {each.shard for each in found.broken} == {"s0", "s1", "s2"}
    assert (found.rows, found.complete, found.is_whole) == (6, True, False)


def test_every_row_is_looked_at_however_few_at_once(cluster: ShardCluster) -> None:
    dice = Random(3)  # noqa: S311 -- no secret
    add_customers(cluster, *range(1, 20))
    expected = []
    rows: dict[str, list[dict[str, object]]] = {}
    for number in range(200):
        store, customer = dice.randrange(1, 40), dice.randrange(1, 25)
        shard = cluster.router.map_of(stores).shard_of(store)
        row: dict[str, object] = {"store_id": store, "id": number, "customer_id": customer}
        rows.setdefault(shard, []).append(row)
        expected += [store] * (customer >= 20)
    for shard, mine in rows.items():
        with cluster.engines[shard].begin() as conn:
            conn.execute(insert(Order), mine)
    told: list[ReferenceAudit] = []

    (found,) = cluster.audit_references(OF_ORDERS, rows_at_once=7, progress=told.append)

    assert sorted(each.row[0] for each in found.broken) == sorted(expected)
    assert found.rows == 200
    assert [each.rows for each in told] == sorted(each.rows for each in told)
    assert len(told) > 200 // 7
    assert audited(cluster, rows_at_once=1) == sorted(expected)


def test_it_stops_when_it_has_found_enough(cluster: ShardCluster) -> None:
    for number in range(9):
        orphan(cluster, 1, MISSING, number=number)

    (found,) = cluster.audit_references(OF_ORDERS, limit=3, rows_at_once=2)

    assert not found.complete
    assert 3 <= len(found.broken) <= 4


def test_both_columns_count(cluster: ShardCluster) -> None:
    customer = keys_on(cluster, customers)[0]
    with cluster.session(atomic=True) as session, session.begin():
        session.add_all([Customer(id=customer), Branch(customer_id=customer, id=1, code="a")])
    shard = cluster.router.map_of(stores).shard_of(1)
    with cluster.engines[shard].begin() as conn:
        of = {"store_id": 1, "customer_id": customer}
        conn.execute(insert(Order).values(**of, id=1, branch_code="a"))
        conn.execute(insert(Order).values(**of, id=2, branch_code="b"))
        conn.execute(insert(Order).values(**of, id=3))

    found = {each.reference: each for each in cluster.audit_references()}

    of_branches = found["store_order_customer_id_branch_code"]
    assert [each.refers_to for each in of_branches.broken] == [(customer, "b")]
    assert of_branches.rows == 2
    assert found[OF_ORDERS].is_whole


def test_what_does_not_exist_is_not_audited(cluster: ShardCluster) -> None:
    with pytest.raises(SettingsError, match=OF_ORDERS):
        cluster.audit_references("no such reference")
    with pytest.raises(SettingsError, match="at least 1"):
        cluster.audit_references(rows_at_once=0)


# What is under way ---------------------------------------------------------------------------


def test_a_parent_that_is_prepared_and_unseen_is_there(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, customer = keys_on(cluster, stores)[0], keys_on(cluster, customers)[1]
    with suppress(Died), cluster.session(atomic=True) as session, armed("atomic.decided", die):
        order = Order(store_id=store, id=7)
        session.add(order)
        session.flush()  # its shard decides
        order.customer_id = customer
        session.add(Customer(id=customer))
        session.commit()
    assert all_orders(cluster) == [(store, customer)]
    with monkeypatch.context() as patched:
        patched.setattr(Settling, "settle", lambda *_: False)
        unsettled = audited(cluster)

    assert unsettled == [store]
    assert audited(cluster) == []


def test_a_row_that_goes_with_its_parent_meanwhile_is_not_broken(cluster: ShardCluster) -> None:
    """The parent's shard shows that it has gone before the child's does."""
    store, customer = keys_on(cluster, stores)[0], keys_on(cluster, customers)[1]
    add_customers(cluster, customer)
    orphan(cluster, store, customer)
    with suppress(Died), cluster.session(atomic=True) as session, armed("atomic.decided", die):
        session.get_one(Customer, customer).name = "decides"
        session.flush()
        session.delete(session.get_one(Order, (store, 1)))
        session.flush()
        session.delete(session.get_one(Customer, customer))
        session.commit()
    assert all_orders(cluster) == [(store, customer)]

    assert audited(cluster) == []


def test_what_is_mended_between_two_looks_is_not_broken(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, customer = keys_on(cluster, stores)[0], keys_on(cluster, customers)[1]
    orphan(cluster, store, customer)
    look = auditing.Auditing._without_parents  # noqa: SLF001 -- what comes after it

    def mend(self: auditing.Auditing, *arguments: object) -> object:
        found = look(self, *arguments)  # type: ignore[arg-type]
        if found:
            add_customers(cluster, customer)
        return found

    monkeypatch.setattr(auditing.Auditing, "_without_parents", mend)

    assert audited(cluster) == []


def test_a_row_that_somebody_holds_is_undecided(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "_LOCK_SECONDS", 0.05)
    store = keys_on(cluster, stores)[0]
    orphan(cluster, store, MISSING)
    with cluster.session() as session:
        session.execute(select(Order).where(Order.store_id == store).with_for_update())
        (found,) = cluster.audit_references(OF_ORDERS)

    assert (found.broken, len(found.undecided), found.is_whole) == ((), 1, False)


# Buckets that move ---------------------------------------------------------------------------


@pytest.mark.parametrize("follows", [True, False])
def test_no_row_is_left_out_because_its_bucket_has_moved(
    cluster: ShardCluster,
    shard_urls: list[URL],
    monkeypatch: pytest.MonkeyPatch,
    *,
    follows: bool,
) -> None:
    """From a shard whose turn has not come to one that is done, by another process."""
    last = max(cluster.engines)
    shard_map = cluster.router.map_of(stores)
    store = next(key for key in range(1, 999) if shard_map.shard_of(key) == last)
    first = next(key for key in range(1, 999) if shard_map.shard_of(key) == "s0")
    orphan(cluster, first, MISSING)
    orphan(cluster, store, MISSING)
    moved: list[str] = []

    def move(found: ReferenceAudit) -> None:
        if found.rows == 1 and not moved:
            bucket = shard_map.strategy.bucket(store)
            with referring_cluster(shard_urls[:3]) as other:
                moved.append(other.move(stores, bucket, to="s0", clean_after_seconds=0).state)

    if not follows:

        def stay(self: AuditRuns, run: Any) -> None:  # noqa: ANN401 -- private
            """Go on with what is where it was, and forget the rest."""
            new = self._newest_map()
            kept = frozenset(each for each in run.buckets if new.owners[each] == run.shard)
            self._runs.appendleft(replace(run, buckets=kept, shard_map=new))

        monkeypatch.setattr(AuditRuns, "_follow", stay)
    (found,) = cluster.audit_references(OF_ORDERS, rows_at_once=1, progress=move)

    assert moved == ["cleaned"]
    broken = sorted(each.row[0] for each in found.broken)
    assert broken == (sorted([first, store]) if follows else [first])


def test_an_audit_in_each_step_of_a_move_finds_the_same(cluster: ShardCluster) -> None:
    store = keys_on(cluster, stores)[0]
    customer = keys_on(cluster, customers)[0]
    add_customers(cluster, customer)
    orphan(cluster, store, MISSING)
    orphan(cluster, store, customer, number=2)
    found: list[list[int]] = []

    def look(progress: MoveProgress) -> None:
        with suppress(StaleShardMapError):
            if progress.move.state != "cut":
                found.append(audited(cluster, rows_at_once=1))

    for group, key in (stores, store), (customers, customer):
        bucket = cluster.router.map_of(group).strategy.bucket(key)
        cluster.move(group, bucket, to="s2", clean_after_seconds=0, progress=look)

    assert len(found) > 4
    assert all(each == [store] for each in found)
