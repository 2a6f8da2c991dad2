"""No key twice and no row without its entry, whoever dies, forgets late, sweeps or moves."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import URL

from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.effort import THOROUGH
from tests.fixtures.index_storms import IndexStorm, Late
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


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
def test_no_key_is_twice_and_no_row_without_its_entry(storm: IndexStorm) -> None:
    storm.rage()

    assert storm.problems == []
    assert {"committed", "died", "IndexKeyTakenError"} <= storm.seen.keys()
    cluster = storm.clusters[0]
    emails = [row[0] for row in rows(cluster)]
    assert len(emails) == len(set(emails))
    assert entries(cluster) == rows(cluster)
