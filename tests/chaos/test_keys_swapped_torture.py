"""Rows swap keys, others want them, all die anywhere; no key is twice, no row without its entry."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

import pytest
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import DataPatternsError
from datapatterns.failpoints import armed
from datapatterns.index_table import ShardIndexes
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.atomic import Died, needs_prepared_transactions, prepared
from tests.fixtures.effort import THOROUGH
from tests.fixtures.shard_model import named
from tests.fixtures.sharded_people import (
    EMAIL,
    Customer,
    by_city,
    by_email,
    entries,
    people,
    rows,
    tenants,
)

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

WRITERS = 6 if THOROUGH else 3
TRANSACTIONS = 400 if THOROUGH else 40
ROWS = 6
EMAILS = [f"{letter}@example.org" for letter in "abcdefgh"]
STEPS = (
    "index.keys-locked",
    "index.some-claimed",
    "index.keys-claimed",
    "index.keys-handed-over",
    "index.base-committed",
    "atomic.branch-prepared",
    "atomic.decision-written",
    "atomic.decided",
    "atomic.branch-settled",
)
impatient = ShardIndexes([by_email, by_city], lock_seconds=0.3)


@dataclass
class Storm:
    """Writers over the same rows, and who recovers, sweeps and reads meanwhile."""

    clusters: list[ShardCluster]
    seen: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _dice: threading.local = field(default_factory=threading.local)
    _over: threading.Event = field(default_factory=threading.Event)

    def rage(self) -> None:
        writers = [threading.Thread(target=self._write, args=(each,)) for each in range(WRITERS)]
        others = [threading.Thread(target=each) for each in (self._tidy_up, self._read)]
        with ExitStack() as stack:
            for name in STEPS:
                stack.enter_context(armed(name, self._die_sometimes, visit=None))
            for thread in (*writers, *others):
                thread.start()
            for thread in writers:
                thread.join()
            self._over.set()
            for thread in others:
                thread.join()

    def _die_sometimes(self) -> None:
        dice: Random | None = getattr(self._dice, "own", None)
        if dice is not None and dice.random() < 0.05:
            raise Died

    def _write(self, number: int) -> None:
        dice = self._dice.own = Random(number)  # noqa: S311 -- no secret
        for _ in range(TRANSACTIONS):
            cluster = dice.choice(self.clusters)
            try:
                dice.choice((self._swap, self._swap, self._take))(cluster, dice)
            except Died:
                self.seen["died"] += 1
            except DBAPIError as error:
                self.seen[str(getattr(error.orig, "sqlstate", None))] += 1
            except DataPatternsError as error:
                self.seen[type(error).__name__] += 1
            else:
                self.seen["committed"] += 1

    def _swap(self, cluster: ShardCluster, dice: Random) -> None:
        one, two = dice.sample(range(ROWS), 2)
        with cluster.session(atomic=True) as session, session.begin():
            first, second = session.get_one(Customer, (one, 1)), session.get_one(Customer, (two, 1))
            first.email, second.email = second.email, first.email

    def _take(self, cluster: ShardCluster, dice: Random) -> None:
        with cluster.session() as session, session.begin():
            row = session.get_one(Customer, (dice.randrange(ROWS), 1))
            row.email = dice.choice([*EMAILS, None])

    def _tidy_up(self) -> None:
        while not self._over.is_set():
            self.clusters[0].recover(grace_seconds=0)
            try:
                impatient.sweep(self.clusters[0], [EMAIL], older_than_seconds=0)
            except DataPatternsError as error:
                self.seen[f"sweep: {type(error).__name__}"] += 1

    def _read(self) -> None:
        dice = Random(99)  # noqa: S311 -- no secret
        while not self._over.is_set():
            try:
                with self.clusters[0].session() as session:
                    found = by_email.lookup(session, dice.choice(EMAILS))
            except DataPatternsError as error:
                self.seen[f"read: {type(error).__name__}"] += 1
                continue
            if len(found) > 1:
                self.problems.append(str(found))


@pytest.fixture
def storm(databases: Databases) -> Iterator[Storm]:
    """Over the same shards twice: READ COMMITTED, and REPEATABLE READ."""
    urls: list[URL] = [databases.new() for _ in range(2)]
    needs_prepared_transactions(urls[0])
    with people(urls), ExitStack() as stack:
        clusters = [
            stack.enter_context(
                ShardCluster(
                    control=urls[0],
                    shards=named(urls),
                    groups=[tenants],
                    indexes=impatient,
                    engine_options={"isolation_level": level, "pool_size": 10},
                )
            )
            for level in ("READ COMMITTED", "REPEATABLE READ")
        ]
        with clusters[0].session(atomic=True) as session, session.begin():
            for number in range(ROWS):
                session.add(Customer(tenant_id=number, id=1, email=EMAILS[number]))
        yield Storm(clusters)
    for url in urls:
        databases.drop(url)


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
def test_no_key_is_twice_and_no_row_without_its_entry(storm: Storm) -> None:
    storm.rage()

    cluster = storm.clusters[0]
    cluster.recover(grace_seconds=0)
    impatient.sweep(cluster, [EMAIL], older_than_seconds=0)
    assert storm.problems == prepared(cluster) == []
    assert {"committed", "died"} <= storm.seen.keys()
    emails = [row[0] for row in rows(cluster)]
    assert len(emails) == len(set(emails))
    assert entries(cluster) == rows(cluster)
    assert impatient.verify(cluster, [EMAIL])[EMAIL].clean
