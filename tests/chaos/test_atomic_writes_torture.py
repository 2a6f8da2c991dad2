"""Transactions over three shards die anywhere while recovery gives no grace: sums stay zero."""

from collections.abc import Iterator
from random import Random

import pytest
from sqlalchemy import URL, update

from datapatterns.sharding import ShardCluster
from tests.fixtures import doomed_workers as workers
from tests.fixtures.atomic import (
    baskets,
    decisions,
    keys_on_each,
    needs_prepared_transactions,
    prepared,
    put,
    sums,
)
from tests.fixtures.effort import THOROUGH
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.shard_model import Basket, households, sharded_shop
from tests.fixtures.storms import Storm

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

WRITERS = 4
TRANSACTIONS = 500 if THOROUGH else 25
MOVES = (2, -1, -1)
REFUSALS = {"ShardTransactionRefusedError", "OutcomeUnknownError"}


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with sharded_shop(shard_urls[:3]) as cluster:
        yield cluster


def test_no_transaction_is_done_by_half(cluster: ShardCluster) -> None:
    known = keys_on_each(cluster)
    with cluster.atomically() as work:
        for key in known:
            for number in range(WRITERS):
                put(work, key, number=number)

    def move(dice: Random, number: int) -> None:
        with cluster.atomically(lock_seconds=0.5) as work:
            for key, cents in zip(dice.sample(known, 3), MOVES, strict=True):
                work.connect(households, household_id=key).execute(
                    update(Basket)
                    .where(Basket.household_id == key, Basket.id == number)
                    .values(cents=Basket.cents + cents)
                )

    seen = Storm(cluster, move, writers=WRITERS, transactions=TRANSACTIONS, deaths=0.1).rage()

    assert seen.keys() <= {"committed", "Died", "LockNotAvailable", *REFUSALS}
    assert min(seen["committed"], seen["Died"]) > 0
    assert any(sums(cluster).values())
    assert sum(sums(cluster).values()) == 0
    assert (prepared(cluster), decisions(cluster)) == ([], [])


@pytest.mark.parametrize(("failpoint", "visit"), workers.WRITING_TOGETHER)
def test_a_process_that_is_killed_leaves_all_or_nothing(
    cluster: ShardCluster, shard_urls: list[URL], failpoint: str, visit: int
) -> None:
    urls = [url.render_as_string(hide_password=False) for url in shard_urls[:3]]
    run_until_failpoint(workers.write_together, failpoint, urls[0], *urls, visit=visit)

    for _ in range(2):
        cluster.recover(grace_seconds=0)

    happened = failpoint in {"atomic.decided", "atomic.branch-settled"}
    assert len(baskets(cluster)) == (3 if happened else 0)
    assert (prepared(cluster), decisions(cluster)) == ([], [])
