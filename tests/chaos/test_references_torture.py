"""Orders and customers come and go on three shards, and writers die: no order is left alone."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from random import Random
from threading import Event

import pytest
from sqlalchemy import URL, delete, insert, update
from sqlalchemy.orm import Session

from datapatterns.errors import (
    MoveBlockedError,
    ParentInUseError,
    ParentMissingError,
    StaleMoveError,
)
from datapatterns.sharding import AllShards, ShardCluster
from datapatterns.sharding.sessions import shard_work
from tests.fixtures import doomed_referrers as workers
from tests.fixtures.atomic import decisions, needs_prepared_transactions, prepared
from tests.fixtures.effort import THOROUGH
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.referring import (
    Customer,
    Order,
    add_customers,
    all_customers,
    all_orders,
    customers,
    keys_on,
    referring_shop,
    stores,
)
from tests.fixtures.storms import Storm

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.chaos,
    # Who dies in the middle of a commit leaves SQLAlchemy's transaction as it was.
    pytest.mark.filterwarnings("ignore:transaction already deassociated"),
]

WRITERS = 4
TRANSACTIONS = 400 if THOROUGH else 25
CUSTOMERS = range(1, 7)
STORES = range(1, 7)


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with referring_shop(shard_urls[:3]) as cluster:
        yield cluster


@pytest.mark.parametrize("moving", [False, True])
def test_no_order_outlives_its_customer(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch, *, moving: bool
) -> None:
    monkeypatch.setattr(shard_work, "LOCK_SECONDS", 0.3)

    def trade(dice: Random, number: int) -> None:
        with cluster.session(atomic=True) as session, session.begin():
            dice.choice(TRADES)(session, dice, number)

    storm = Storm(cluster, trade, writers=WRITERS, transactions=TRANSACTIONS, deaths=0.08)
    over = Event()
    with ThreadPoolExecutor(1) as pool:
        moves = pool.submit(move_buckets, cluster, over if moving else None)
        try:
            seen = storm.rage()
        finally:
            over.set()
        moved = moves.result()
    cluster.resume_moves(clean_after_seconds=0)
    cluster.router.refresh()

    assert bool(moved["cleaned"]) == moving
    assert min(seen["committed"], seen["Died"], seen[ParentMissingError.__name__]) > 0
    if THOROUGH:
        assert seen[ParentInUseError.__name__] > 0
    assert [audit for audit in cluster.audit_references() if not audit.is_whole] == []
    assert orphans(cluster) == []
    assert (prepared(cluster), decisions(cluster)) == ([], [])


def move_buckets(cluster: ShardCluster, over: Event | None) -> Counter[str]:
    """Move buckets of customers and stores to the next shard, one after the other."""
    moved: Counter[str] = Counter()
    shards = sorted(cluster.engines)
    for number in count():
        if over is None or over.is_set():
            break
        group = (customers, stores)[number % 2]
        cluster.router.refresh()
        shard_map = cluster.router.map_of(group)
        bucket = shard_map.strategy.bucket(CUSTOMERS[number // 2 % len(CUSTOMERS)])
        to = shards[(shards.index(shard_map.owners[bucket]) + 1) % len(shards)]
        try:
            moved[cluster.move(group, bucket, to=to, clean_after_seconds=0).state] += 1
        except (MoveBlockedError, StaleMoveError) as error:
            # Such as that one that has died holds the bucket still.
            moved[type(error).__name__] += 1
    return moved


def new_customer(session: Session, dice: Random, _number: int) -> None:
    session.add(Customer(id=dice.choice(CUSTOMERS)))


def order_of_a_customer_that_is_written_to(session: Session, dice: Random, number: int) -> None:
    """The customer's shard is written to first, and so decides."""
    customer = dice.choice(CUSTOMERS)
    session.execute(update(Customer).where(Customer.id == customer).values(name=str(number)))
    order = Order(store_id=dice.choice(STORES), id=next(numbers), customer_id=customer)
    session.add(order)


def orders_of_two_stores(session: Session, dice: Random, _number: int) -> None:
    customer = dice.choice(CUSTOMERS)
    rows = [
        {"store_id": store, "id": next(numbers), "customer_id": customer}
        for store in dice.sample(STORES, 2)
    ]
    session.execute(insert(Order), rows)


def other_customer(session: Session, dice: Random, _number: int) -> None:
    of_a_store = update(Order).where(Order.store_id == dice.choice(STORES))
    session.execute(of_a_store.values(customer_id=dice.choice(CUSTOMERS)))


def no_order(session: Session, dice: Random, _number: int) -> None:
    session.execute(delete(Order).where(Order.store_id == dice.choice(STORES)))


def no_customer(session: Session, dice: Random, _number: int) -> None:
    session.execute(delete(Customer).where(Customer.id == dice.choice(CUSTOMERS)))


def no_order_and_no_customer(session: Session, dice: Random, number: int) -> None:
    session.execute(delete(Order), execution_options={"shard": AllShards()})
    no_customer(session, dice, number)


numbers = count()
TRADES = [
    new_customer,
    order_of_a_customer_that_is_written_to,
    orders_of_two_stores,
    other_customer,
    no_order,
    no_customer,
    no_order_and_no_customer,
]


def orphans(cluster: ShardCluster) -> list[int]:
    there = {*all_customers(cluster)}
    return [whose for _, whose in all_orders(cluster) if whose is not None and whose not in there]


@pytest.mark.parametrize(("failpoint", "visit"), workers.REFERRING)
def test_whoever_deletes_next_sees_what_a_process_that_was_killed_has_left(
    cluster: ShardCluster, shard_urls: list[URL], failpoint: str, visit: int
) -> None:
    first, second, third = keys_on(cluster, customers)
    add_customers(cluster, first, second, third)
    urls = [url.render_as_string(hide_password=False) for url in shard_urls[:3]]
    run_until_failpoint(workers.refer_together, failpoint, urls[0], *urls, visit=visit)
    happened = failpoint in {"atomic.decided", "atomic.branch-settled"}

    # First that whose lock has gone with the process: who deletes it ends what is left elsewhere.
    for customer in second, first, third:
        with cluster.session() as session:
            session.delete(session.get_one(Customer, customer))
            if happened:
                with pytest.raises(ParentInUseError):
                    session.commit()
            else:
                session.commit()
    for _ in range(2):
        cluster.recover(grace_seconds=0)

    assert len(all_customers(cluster)) == (3 if happened else 0)
    assert len(all_orders(cluster)) == (2 if happened else 0)
    assert orphans(cluster) == []
    assert (prepared(cluster), decisions(cluster)) == ([], [])


@pytest.mark.parametrize(("failpoint", "visit"), workers.LETTING_GO)
def test_who_dies_while_he_deletes_has_deleted_nothing(
    cluster: ShardCluster, shard_urls: list[URL], failpoint: str, visit: int
) -> None:
    known = keys_on(cluster, customers)
    add_customers(cluster, *known)
    urls = [url.render_as_string(hide_password=False) for url in shard_urls[:3]]
    run_until_failpoint(workers.delete_a_customer, failpoint, urls[0], *urls, visit=visit)

    with cluster.session(atomic=True) as session, session.begin():
        session.add(Order(store_id=keys_on(cluster, stores)[0], id=1, customer_id=known[1]))

    assert all_customers(cluster) == sorted(known)
