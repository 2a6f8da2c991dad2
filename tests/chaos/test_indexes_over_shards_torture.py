"""No key twice and no row without its entry, whoever dies, forgets late, sweeps or moves."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random

import pytest
from sqlalchemy import URL

from datapatterns.sharding import Move, ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.effort import THOROUGH
from tests.fixtures.index_storms import EMAILS, IndexStorm, Late
from tests.fixtures.shard_model import named
from tests.fixtures.sharded_people import both, entries, people, rows, tenants

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

WRITERS = 6 if THOROUGH else 4
TRANSACTIONS = 600 if THOROUGH else 40


@pytest.fixture
def storm(databases: Databases) -> Iterator[IndexStorm]:
    """Over the same shards twice: READ COMMITTED, and REPEATABLE READ."""
    urls: list[URL] = [databases.new() for _ in range(2)]
    late = Late(both)
    with people(urls), ExitStack() as stack:
        clusters = [
            stack.enter_context(
                ShardCluster(
                    control=urls[0],
                    shards=named(urls),
                    groups=[tenants],
                    indexes=late,
                    engine_options={"isolation_level": level, "pool_size": 10},
                )
            )
            for level in ("READ COMMITTED", "READ COMMITTED", "REPEATABLE READ")
        ]
        yield IndexStorm(clusters, late, writers=WRITERS, transactions=TRANSACTIONS)
    for url in urls:
        databases.drop(url)


def move_until_over(storm: IndexStorm, moved: list[Move]) -> None:
    """Move buckets of rows and of entries to and fro."""
    cluster, dice = storm.clusters[0], Random(3)  # noqa: S311 -- no secret
    index = both.indexes["customer_by_email"].group
    while not storm.is_over:
        of_rows = (tenants, tenants.strategy.bucket(dice.randrange(2)))
        group, bucket = dice.choice([of_rows, (index, index.strategy.bucket(dice.choice(EMAILS)))])
        to = "s1" if cluster.router.map_of(group).owners[bucket] == "s0" else "s0"
        moved.append(cluster.move(group, bucket, to=to, clean_after_seconds=0))


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
def test_nor_while_buckets_of_rows_and_of_entries_move(storm: IndexStorm) -> None:
    moved: list[Move] = []
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move_until_over, storm, moved)
        storm.rage()
        moving.result()

    assert storm.problems == []
    assert {move.group for move in moved} == {"tenant", "customer_by_email"}
    assert "committed" in storm.seen
    cluster = storm.clusters[0]
    assert entries(cluster) == rows(cluster)


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
def test_no_key_is_twice_and_no_row_without_its_entry(storm: IndexStorm) -> None:
    storm.rage()

    assert storm.problems == []
    assert {"committed", "died", "IndexKeyTakenError"} <= storm.seen.keys()
    cluster = storm.clusters[0]
    emails = [row[0] for row in rows(cluster)]
    assert len(emails) == len(set(emails))
    assert entries(cluster) == rows(cluster)
