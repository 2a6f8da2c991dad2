"""Shards are added, filled, emptied and taken out while writers go on."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import URL, text

from datapatterns.errors import MoveRefusedError, ShardMapExistsError, StaleMoveError
from datapatterns.sharding import MoveProgress, ShardCluster
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.moving_writers import check_ledger, writing
from tests.fixtures.shard_model import Basket, create_tables, households, named, sharded_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def two(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    """Two shards that are in use, and a third server that is not."""
    with sharded_shop(shard_urls[:2]) as cluster:
        yield cluster


@pytest.fixture
def three(two: ShardCluster, shard_urls: list[URL]) -> Iterator[ShardCluster]:
    create_tables(shard_urls[2])
    urls = shard_urls[:3]
    with ShardCluster(control=urls[0], shards=named(urls), groups=[households]) as cluster:
        assert two.groups == cluster.groups
        yield cluster


def buckets_of(cluster: ShardCluster) -> dict[str, int]:
    cluster.router.refresh()
    shard_map = cluster.router.map_of(households)
    return {shard: len(shard_map.buckets_on(shard)) for shard in sorted(cluster.engines)}


def test_a_shard_is_added_filled_emptied_and_removed_beside_writers(three: ShardCluster) -> None:
    buckets = (1, 2, 3, 4, 5, 6)
    keys = [keys_in(bucket, 1)[0] for bucket in buckets]
    told: list[MoveProgress] = []
    three.add_shard("s2", weight=2)
    three.add_shard("s2")  # again, with the weight of today

    with writing(three, keys, threads=2) as writers:
        plan = three.plan(households, max_moves=3)
        assert {move.target for move in plan} == {"s2"}
        moves = three.rebalance(plan, max_parallel=2, clean_after_seconds=0, progress=told.append)
        assert [move.state for move in moves] == ["cleaned"] * len(plan)
        assert buckets_of(three)["s2"] == len(plan)
        # A plan of yesterday does nothing.
        assert three.rebalance(plan, clean_after_seconds=0) == []

        three.drain("s2", clean_after_seconds=0, max_parallel=2)
        assert buckets_of(three)["s2"] == 0

    check_ledger(three, writers)
    assert {progress.move.state for progress in told} >= {"copying", "handed_over", "cleaned"}
    with pytest.raises(StaleMoveError, match="not active"):
        three.move(households, 1, to="s2")

    three.remove_shard("s2")

    assert three.moves(live=False) == []
    with three.engines["s0"].connect() as conn:
        listed = conn.scalars(text("SELECT shard_id FROM datapatterns.shard")).all()
    assert sorted(listed) == ["s0", "s1"]


def test_a_map_is_not_created_anew_for_a_shard_that_comes(three: ShardCluster) -> None:
    with pytest.raises(ShardMapExistsError, match=r"let \['s2'\] in with ShardCluster.add_shard"):
        three.create_map()


def test_a_shard_with_buckets_is_not_removed(two: ShardCluster) -> None:
    with pytest.raises(MoveRefusedError, match="32 buckets"):
        two.remove_shard("s1")


def test_a_server_with_rows_does_not_become_a_shard(
    three: ShardCluster, shard_urls: list[URL]
) -> None:
    with psycopg.connect(
        shard_urls[2].set(drivername="postgresql").render_as_string(hide_password=False)
    ) as conn:
        conn.execute("INSERT INTO basket (household_id, id) VALUES (1, 1)")

    with pytest.raises(ShardMapExistsError, match="basket"):
        three.add_shard("s2")

    with three.engines["s0"].connect() as conn:
        assert conn.scalar(text("SELECT count(*) FROM datapatterns.shard")) == 2


def test_late_writers_past_the_library_are_refused_until_that_is_forgotten(
    two: ShardCluster,
) -> None:
    bucket, (key,) = 5, keys_in(5, 1)
    put(two, key)
    source = two.router.map_of(households).owners[bucket]
    target = "s1" if source == "s0" else "s0"
    two.move(households, bucket, to=target, clean_after_seconds=0)
    late = text("INSERT INTO basket (household_id, id) VALUES (:key, 2)")

    with two.engines[source].connect() as conn, pytest.raises(Exception, match="does not own"):
        conn.execute(late, {"key": key})
    assert two.forget(households, dry_run=True) == {source: [bucket], target: []}
    assert two.forget(households) == {source: [bucket], target: []}

    with two.engines[source].begin() as conn:
        conn.execute(late, {"key": key})  # nobody refuses it any more
        conn.execute(text("DELETE FROM basket"))
    assert two.forget(households) == {source: [], target: []}


def test_a_bucket_that_comes_back_is_written_to_again(two: ShardCluster) -> None:
    bucket, (key, other) = 5, keys_in(5, 2)
    put(two, key, lines=2)
    home = two.router.map_of(households).owners[bucket]
    away = "s1" if home == "s0" else "s0"

    two.move(households, bucket, to=away, clean_after_seconds=0)
    two.move(households, bucket, to=home, clean_after_seconds=0)
    put(two, other, lines=1)

    assert states_of(two, bucket) == {home: "owned", away: "cleaned"}
    assert bucket_rows(two, home, bucket) == (2, 3)
    with two.engines[home].connect() as conn:
        assert conn.scalar(text("SELECT count(*) FROM datapatterns.dirty_key")) == 0
        assert conn.scalar(text("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'zz_%'")) == 0
    with two.session() as session:
        assert session.get(Basket, (key, 1)) is not None


def test_indexes_are_advised_that_find_a_bucket(two: ShardCluster) -> None:
    hints = two.move_hints(households)

    assert len(hints) == 2
    for engine in two.engines.values():
        with engine.connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            for hint in hints:
                conn.exec_driver_sql(hint)
    assert two.move_hints(households) == []
    bucket, (key,) = 5, keys_in(5, 1)
    put(two, key)
    source = two.router.map_of(households).owners[bucket]
    with two.engines[source].begin() as conn:
        conn.execute(
            text(
                "INSERT INTO basket (household_id, id) SELECT 8, g FROM generate_series(1, 3000) g"
            )
        )
        conn.execute(text("ANALYZE basket"))
        found = "\n".join(
            conn.scalars(
                text(
                    "EXPLAIN SELECT * FROM basket AS r"
                    " WHERE datapatterns.hash_bucket(r.household_id, 64) = 5"
                )
            )
        )
    assert "Index" in found
