"""Who refers to a row while it goes: each guard is what keeps one of them from winning."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from uuid import uuid4

import pytest
from sqlalchemy import URL, Connection, create_engine, delete, select, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import (
    BranchesUnsettledError,
    ParentInUseError,
    ParentMissingError,
)
from datapatterns.failpoints import armed
from datapatterns.sharding import MoveProgress, ShardCluster
from datapatterns.sharding.atomic.branches import Branch
from datapatterns.sharding.atomic.deciding import own_xid
from datapatterns.sharding.atomic.settling import Settling
from datapatterns.sharding.references import checking
from datapatterns.sharding.references.checking import ReferenceChecks
from datapatterns.sharding.references.questions import existing_parents
from tests.fixtures.atomic import Died, needs_prepared_transactions, prepared
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.referring import (
    Customer,
    Order,
    add_customers,
    add_order,
    all_customers,
    all_orders,
    customers,
    die,
    die_with_an_order_prepared,
    keys_on,
    referring_shop,
    stores,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with referring_shop(shard_urls[:3]) as cluster:
        yield cluster
        cluster.recover(grace_seconds=0)


@pytest.fixture
def customer(cluster: ShardCluster) -> int:
    """On s1."""
    found = keys_on(cluster, customers)[1]
    add_customers(cluster, found)
    return found


@pytest.fixture
def store(cluster: ShardCluster) -> int:
    """On s0."""
    return keys_on(cluster, stores)[0]


def delete_customer(cluster: ShardCluster, customer: int) -> None:
    with cluster.session() as session, session.begin():
        session.delete(session.get_one(Customer, customer))


def orphans(cluster: ShardCluster) -> list[int]:
    there = {*all_customers(cluster)}
    return [whose for _, whose in all_orders(cluster) if whose is not None and whose not in there]


# A child that has happened, and is not to be seen yet ------------------------------------------


def test_a_row_that_is_prepared_and_unseen_keeps_its_parent(
    cluster: ShardCluster, store: int, customer: int
) -> None:
    die_with_an_order_prepared(cluster, store, customer)

    with pytest.raises(ParentInUseError):
        delete_customer(cluster, customer)

    assert (prepared(cluster), orphans(cluster)) == ([], [])
    assert all_orders(cluster) == [(store, customer)]


def test_without_ending_what_is_prepared_it_would_outlive_its_parent(
    cluster: ShardCluster, store: int, customer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settling, "settle", lambda *_: False)
    die_with_an_order_prepared(cluster, store, customer)

    delete_customer(cluster, customer)
    cluster.recover(grace_seconds=0)

    assert orphans(cluster) == [customer]


def test_a_row_that_is_prepared_and_never_happens_keeps_nothing(
    cluster: ShardCluster, store: int, customer: int
) -> None:
    with (
        suppress(Died),
        cluster.session(atomic=True) as session,
        armed("atomic.decision-written", die),
    ):
        session.get_one(Customer, customer).name = "the first to be written to decides"
        session.flush()
        session.add(Order(store_id=store, id=1, customer_id=customer))
        session.commit()
    assert len(prepared(cluster)) == 1

    delete_customer(cluster, customer)

    assert (prepared(cluster), all_orders(cluster), all_customers(cluster)) == ([], [], [])


# A parent that has happened, and is not to be seen yet -----------------------------------------


@pytest.mark.parametrize("settles", [True, False])
def test_a_parent_that_is_prepared_and_unseen_is_there(
    cluster: ShardCluster, store: int, monkeypatch: pytest.MonkeyPatch, *, settles: bool
) -> None:
    customer = keys_on(cluster, customers)[1]
    with suppress(Died), cluster.session(atomic=True) as session, armed("atomic.decided", die):
        session.add(Order(store_id=store, id=7))
        session.flush()
        session.add(Customer(id=customer))
        session.commit()
    assert len(prepared(cluster)) == 1
    if settles:
        add_order(cluster, store, customer)
        assert orphans(cluster) == []
        return

    monkeypatch.setattr(Settling, "settle", lambda *_: False)
    with pytest.raises(ParentMissingError):
        add_order(cluster, store, customer)


# Two at a time ---------------------------------------------------------------------------------


def test_who_deletes_waits_for_who_refers(cluster: ShardCluster, store: int, customer: int) -> None:
    with ThreadPoolExecutor(1) as other, cluster.session(atomic=True) as session:
        session.add(Order(store_id=store, id=1, customer_id=customer))
        session.flush()
        deletion = other.submit(delete_customer, cluster, customer)
        until_blocked_by(
            cluster.engines["s1"], session.connection(bind_arguments={"shard_id": "s1"})
        )
        session.commit()
        with pytest.raises(ParentInUseError):
            deletion.result()

    assert orphans(cluster) == []


def test_without_the_lock_who_refers_would_be_too_late(
    cluster: ShardCluster, store: int, customer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "lock_parents", existing_parents)
    with cluster.session(atomic=True) as session:
        session.add(Order(store_id=store, id=1, customer_id=customer))
        session.flush()
        delete_customer(cluster, customer)
        session.commit()

    assert orphans(cluster) == [customer]


def test_who_refers_waits_for_who_deletes(cluster: ShardCluster, store: int, customer: int) -> None:
    with ThreadPoolExecutor(1) as other, cluster.session(atomic=True) as session:
        session.delete(session.get_one(Customer, customer))
        session.flush()
        order = other.submit(add_order, cluster, store, customer)
        until_blocked_by(
            cluster.engines["s1"], session.connection(bind_arguments={"shard_id": "s1"})
        )
        session.commit()
        with pytest.raises(ParentMissingError):
            order.result()

    assert (all_customers(cluster), all_orders(cluster)) == ([], [])


def test_the_lock_goes_on_while_its_shard_is_prepared(
    cluster: ShardCluster, store: int, customer: int
) -> None:
    """A lock counts as a write: ended before the child has happened, it would keep nothing."""
    halted, go_on = Event(), Event()

    def halt() -> None:
        halted.set()
        assert go_on.wait(30)

    with (
        ThreadPoolExecutor(1) as other,
        armed("atomic.branch-prepared", halt),
        cluster.engines["s1"].connect() as conn,
    ):
        order = other.submit(add_order, cluster, store, customer)
        assert halted.wait(30)
        locking = select(Customer.id).with_for_update(nowait=True)
        with pytest.raises(DBAPIError, match="could not obtain lock"):
            conn.execute(locking)
        go_on.set()
        order.result()


def test_a_row_that_moves_keeps_its_parent_meanwhile(
    cluster: ShardCluster, store: int, customer: int
) -> None:
    """It goes here and comes there: who looks at one shard after the other may see neither."""
    add_order(cluster, store, customer)
    elsewhere = keys_on(cluster, stores)[2]
    with cluster.atomically() as work, cluster.engines["s1"].connect() as conn:
        work.move_row(Order, {"store_id": store, "id": 1}, store_id=elsewhere)
        locking = select(Customer.id).with_for_update(nowait=True)
        with pytest.raises(DBAPIError, match="could not obtain lock"):
            conn.execute(locking)

    assert all_orders(cluster) == [(elsewhere, customer)]


# Buckets that move -----------------------------------------------------------------------------


def customers_bucket(cluster: ShardCluster, customer: int) -> int:
    return cluster.router.map_of(customers).strategy.bucket(customer)


def test_the_bucket_of_a_parent_stays_until_it_is_referred_to(
    cluster: ShardCluster, store: int, customer: int
) -> None:
    bucket = customers_bucket(cluster, customer)
    with ThreadPoolExecutor(1) as other, cluster.session(atomic=True) as session:
        session.add(Order(store_id=store, id=1, customer_id=customer))
        session.flush()
        moved = other.submit(cluster.move, customers, bucket, to="s2", clean_after_seconds=0)
        parents = session.connection(bind_arguments={"shard_id": "s1"})
        until_blocked_by(cluster.engines["s1"], parents)
        cluster.router.refresh()
        assert cluster.router.map_of(customers).owners[bucket] == "s1"
        session.commit()
        assert moved.result().state == "cleaned"
    cluster.router.refresh()

    with pytest.raises(ParentInUseError):
        delete_customer(cluster, customer)


def test_without_its_fence_a_bucket_would_take_the_parent_away_and_leave_the_lock(
    cluster: ShardCluster, store: int, customer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceChecks, "_claim_parents", lambda *_: None)
    with cluster.session(atomic=True) as session:
        session.add(Order(store_id=store, id=1, customer_id=customer))
        session.flush()

        def delete_there(progress: MoveProgress) -> None:
            if progress.move.state == "handed_over" and session.in_transaction():
                cluster.router.refresh()
                delete_customer(cluster, customer)
                session.commit()

        bucket = customers_bucket(cluster, customer)
        cluster.move(customers, bucket, to="s2", clean_after_seconds=0, progress=delete_there)

    assert orphans(cluster) == [customer]


def test_a_child_whose_bucket_has_moved_is_found_where_it_is(
    cluster: ShardCluster, store: int, customer: int
) -> None:
    add_order(cluster, store, customer)
    bucket = cluster.router.map_of(stores).strategy.bucket(store)
    refused: list[str] = []

    def delete_meanwhile(progress: MoveProgress) -> None:
        with pytest.raises(ParentInUseError):
            delete_customer(cluster, customer)
        refused.append(progress.move.state)

    cluster.router.refresh()
    cluster.move(stores, bucket, to="s2", clean_after_seconds=0, progress=delete_meanwhile)

    assert {"copying", "catching_up"} & {*refused}
    assert all_customers(cluster) == [customer]


def test_what_a_bucket_has_left_behind_keeps_no_parent(
    cluster: ShardCluster, store: int, customer: int
) -> None:
    add_order(cluster, store, customer)
    bucket = cluster.router.map_of(stores).strategy.bucket(store)
    states: list[str] = []

    def delete_both(progress: MoveProgress) -> None:
        if progress.move.state == "handed_over" and not states:
            cluster.router.refresh()
            with cluster.session(atomic=True) as session, session.begin():
                session.execute(delete(Order).where(Order.store_id == store))
            delete_customer(cluster, customer)
            states.extend(str(each) for each in all_orders(cluster))

    cluster.move(stores, bucket, to="s2", clean_after_seconds=0, progress=delete_both)

    assert len(states) == 1  # where it has been
    assert (all_customers(cluster), all_orders(cluster)) == ([], [])


# What cannot be known --------------------------------------------------------------------------


def prepare(conn: Connection, branch: Branch, statement: str) -> None:
    conn.execute(text(statement))
    conn.exec_driver_sql(f"PREPARE TRANSACTION '{branch.name}'")


@pytest.fixture
def ending(cluster: ShardCluster) -> Iterator[Callable[[str], None]]:
    names: list[str] = []
    yield names.append
    for name in names:
        engine = create_engine(cluster.engines["s0"].url, isolation_level="AUTOCOMMIT")
        with engine.connect() as conn:
            conn.exec_driver_sql(f"ROLLBACK PREPARED '{name}'")
        engine.dispose()


def test_who_deletes_does_not_guess_what_a_foreign_shard_has_decided(
    cluster: ShardCluster, customer: int, ending: Callable[[str], None]
) -> None:
    with cluster.engines["s0"].connect() as conn:
        branch = Branch(uuid4(), "nowhere", own_xid(conn), "s0", "datapatterns")
        prepare(conn, branch, "INSERT INTO store_order (store_id, id) VALUES (1, 1)")
    ending(branch.name)

    with pytest.raises(BranchesUnsettledError, match="nowhere"):
        delete_customer(cluster, customer)

    assert all_customers(cluster) == [customer]


def test_who_deletes_lets_others_go_on_that_have_not_decided(
    cluster: ShardCluster, customer: int, ending: Callable[[str], None]
) -> None:
    with cluster.engines["s1"].begin() as primary, cluster.engines["s0"].connect() as conn:
        branch = Branch(uuid4(), "s1", own_xid(primary), "s0", "datapatterns")
        prepare(conn, branch, "INSERT INTO store_order (store_id, id) VALUES (1, 1)")
        ending(branch.name)

        delete_customer(cluster, customer)

        assert prepared(cluster) == [branch.name]
    assert all_customers(cluster) == []
