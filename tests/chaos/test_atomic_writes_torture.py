"""Transactions over three shards die anywhere while recovery gives no grace: sums stay zero."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random
from threading import Event

import pytest
from sqlalchemy import URL, update
from sqlalchemy.exc import OperationalError

from datapatterns.errors import OutcomeUnknownError, ShardTransactionRefusedError
from datapatterns.failpoints import armed
from datapatterns.sharding import ShardCluster
from tests.fixtures import doomed_workers as workers
from tests.fixtures.atomic import (
    Died,
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

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

WRITERS = 4
TRANSACTIONS = 500 if THOROUGH else 25
DEADLY = (
    "atomic.branch-prepared",
    "atomic.decision-written",
    "atomic.decided",
    "atomic.branch-settled",
)
MOVES = (2, -1, -1)
REFUSALS = {"ShardTransactionRefusedError", "OutcomeUnknownError"}


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with sharded_shop(shard_urls[:3]) as cluster:
        yield cluster


class Storm:
    """Writers that die now and then, and recovery that gives nobody a grace."""

    def __init__(self, cluster: ShardCluster) -> None:
        self.cluster = cluster
        self.keys = keys_on_each(cluster)
        self._over = Event()
        self._dice = Random(7)  # noqa: S311 -- no secret

    def rage(self) -> Counter[str]:
        """Return how the transactions have ended."""
        with ExitStack() as stack, ThreadPoolExecutor(WRITERS + 1) as pool:
            for name in DEADLY:
                stack.enter_context(armed(name, self._die_sometimes, visit=None))
            recovering = pool.submit(self._recover)
            try:
                return sum(pool.map(self._write, range(WRITERS)), Counter[str]())
            finally:
                self._over.set()
                recovering.result()

    def _die_sometimes(self) -> None:
        if self._dice.random() < 0.1:
            raise Died

    def _recover(self) -> None:
        while not self._over.is_set():
            self.cluster.recover(grace_seconds=0)

    def _write(self, number: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        dice = Random(number)  # noqa: S311 -- no secret
        for _ in range(TRANSACTIONS):
            try:
                self._move(dice.sample(self.keys, 3), number)
            except (Died, ShardTransactionRefusedError, OutcomeUnknownError) as end:
                seen[type(end).__name__] += 1
            except OperationalError as error:
                # A branch of one that died holds the row still.
                seen[type(error.orig).__name__] += 1
            else:
                seen["committed"] += 1
        return seen

    def _move(self, keys: list[int], number: int) -> None:
        with self.cluster.atomically(lock_seconds=0.5) as work:
            for key, cents in zip(keys, MOVES, strict=True):
                work.connect(households, household_id=key).execute(
                    update(Basket)
                    .where(Basket.household_id == key, Basket.id == number)
                    .values(cents=Basket.cents + cents)
                )


def test_no_transaction_is_done_by_half(cluster: ShardCluster) -> None:
    storm = Storm(cluster)
    with cluster.atomically() as work:
        for key in storm.keys:
            for number in range(WRITERS):
                put(work, key, number=number)

    seen = storm.rage()
    for _ in range(2):
        cluster.recover(grace_seconds=0)

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
