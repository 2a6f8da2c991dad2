"""Buckets change their shard with all rows, while they are read and written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.errors import SerializationFailure
from sqlalchemy import URL, func, select, text
from sqlalchemy.exc import OperationalError

from datapatterns.errors import StaleMoveError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import wait_until
from tests.fixtures.effort import at_most
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.moving_writers import WAYS, check_ledger, writing
from tests.fixtures.shard_model import Basket, Line, households, sharded_shop

pytestmark = pytest.mark.postgres

BUCKET = 5


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(shard_urls[:2]) as cluster:
        yield cluster


def test_a_bucket_moves_with_all_rows_of_all_tables(cluster: ShardCluster) -> None:
    keys = keys_in(BUCKET, 30)
    for key in keys:
        put(cluster, key, lines=3)
    other = keys_in(BUCKET + 2, 5)
    for key in other:
        put(cluster, key, lines=1)
    source = cluster.router.map_of(households).owners[BUCKET]
    target = "s1" if source == "s0" else "s0"

    move = cluster.move(households, BUCKET, to=target, clean_after_seconds=0)

    assert (move.state, move.copied_rows) == ("cleaned", 30 + 90)
    assert bucket_rows(cluster, source, BUCKET) == (0, 0)
    assert bucket_rows(cluster, target, BUCKET) == (30, 90)
    assert states_of(cluster, BUCKET) == {source: "cleaned", target: "owned"}
    assert cluster.router.map_of(households).owners[BUCKET] == target
    with cluster.session(scatter=True) as session:
        assert session.scalar(select(func.count()).select_from(Basket)) == 35
        assert session.scalar(select(func.count()).select_from(Line)) == 95
        assert session.get(Basket, (keys[0], 1)) is not None


def test_nothing_is_lost_or_doubled_while_writers_of_all_kinds_go_on(
    cluster: ShardCluster,
) -> None:
    buckets = (1, 2, 3)
    keys = [key for bucket in buckets for key in keys_in(bucket, 3)]

    with writing(cluster, keys) as writers:
        for _ in range(at_most(3)):
            for bucket in buckets:
                owner = cluster.router.map_of(households).owners[bucket]
                to = "s1" if owner == "s0" else "s0"
                cluster.move(households, bucket, to=to, clean_after_seconds=0)

    check_ledger(cluster, writers)
    assert set(writers.commits) == set(WAYS)
    assert writers.scatters > 0
    for bucket in buckets:
        assert sorted(states_of(cluster, bucket).values()) == ["cleaned", "owned"]


def test_a_bucket_does_not_move_twice_at_once_nor_to_where_it_is(cluster: ShardCluster) -> None:
    owner = cluster.router.map_of(households).owners[BUCKET]

    with pytest.raises(StaleMoveError):
        cluster.move(households, BUCKET, to=owner)

    assert cluster.moves(live=False) == []


def test_a_connection_whose_claim_fails_raises_what_its_statements_raise(
    cluster: ShardCluster,
) -> None:
    """As while a bucket is cut under a transaction that has just begun."""
    [key] = keys_in(BUCKET, 1)
    shard = cluster.router.map_of(households).owners[BUCKET]
    changed = text("UPDATE datapatterns.bucket SET epoch = epoch + 1 WHERE bucket = :bucket")

    def begin() -> None:
        with cluster.connect(households, household_id=key) as plain:
            plain.execution_options(isolation_level="REPEATABLE READ").begin()

    with ThreadPoolExecutor(1) as pool, cluster.engines[shard].connect() as cutting:
        cutting.execute(changed, {"bucket": BUCKET})
        found = pool.submit(begin)
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        wait_until(lambda: found.done() or cutting.scalar(waiting))
        cutting.commit()
        with pytest.raises(OperationalError) as caught:
            found.result()

    assert isinstance(caught.value.orig, SerializationFailure)
    begin()
