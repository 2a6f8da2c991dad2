"""Buckets that were pinned, split off or merged move like any other, and nobody is misled."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import URL, text

from datapatterns.errors import MapChangeRefusedError, StaleMoveError, StaleShardMapError
from datapatterns.failpoints import armed
from datapatterns.sharding import EntityGroup, Key, ShardCluster
from datapatterns.sharding.moving import receiving
from tests.fixtures.changing_maps import days, noted, read, shops, tenants, write
from tests.fixtures.effort import at_most
from tests.fixtures.moving import keys_in
from tests.fixtures.moving_writers import check_ledger, writing
from tests.fixtures.shard_model import households, sharded_shop

pytestmark = pytest.mark.postgres

ELSEWHERE = {"s0": "s1", "s1": "s0"}


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with noted(shard_urls[:2]) as cluster:
        yield cluster


@pytest.fixture
def stale(cluster: ShardCluster, shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with noted(shard_urls[:2], poll_seconds=3600, create=False) as stale:
        assert stale.router.map_of(tenants) == cluster.router.map_of(tenants)
        yield stale


def move(cluster: ShardCluster, group: EntityGroup, bucket: int) -> None:
    owner = cluster.router.map_of(group).owners[bucket]
    cluster.move(group, bucket, to=ELSEWHERE[owner], clean_after_seconds=0)


def raw_write(cluster: ShardCluster, shard: str, key: int) -> None:
    """Write past the library."""
    with cluster.engines[shard].begin() as conn:
        statement = "INSERT INTO tenant_note (key, id) VALUES (:key, 99) ON CONFLICT DO NOTHING"
        conn.execute(text(statement), {"key": key})


def test_an_isolated_tenant_is_alone_and_whoever_is_late_is_refused(
    cluster: ShardCluster, stale: ShardCluster
) -> None:
    write(cluster, tenants, 7)
    pinned = cluster.pin(tenants, 7)

    move(cluster, tenants, pinned.gaining)

    assert cluster.router.map_of(tenants).shard_of(7) == ELSEWHERE[pinned.shard]
    with pytest.raises(StaleShardMapError):
        write(stale, tenants, 7, 2)
    write(stale, tenants, 7, 2)
    assert read(cluster, tenants, 7) == [1, 2]
    with pytest.raises(Exception, match="does not own bucket 8"):
        raw_write(cluster, pinned.shard, 7)


def pin_back(cluster: ShardCluster) -> tuple[EntityGroup, Key, int]:
    """A bucket leaves a shard, and then a key of it comes back alone."""
    bucket = cluster.router.map_of(tenants).strategy.bucket(7)
    move(cluster, tenants, bucket)
    return tenants, 7, cluster.pin(tenants, 7).gaining


def merge_back(cluster: ShardCluster) -> tuple[EntityGroup, Key, int]:
    """A split off range leaves a shard, is merged elsewhere, and comes back as a part of that."""
    split = cluster.split_range(days, at=150)
    move(cluster, days, split.gaining)
    move(cluster, days, 1)
    cluster.merge_ranges(days, at=150)
    return days, 170, 1


def assign_back(cluster: ShardCluster) -> tuple[EntityGroup, Key, int]:
    """A bucket leaves a shard, a key of it is assigned to another, and that one comes."""
    shard_map = cluster.router.map_of(shops)
    home = shard_map.strategy.bucket("corner")
    move(cluster, shops, home)
    shard_map = cluster.router.map_of(shops)
    other = next(b for b in shard_map.buckets_on(shard_map.owners[home]) if b not in {home, 8})
    cluster.assign(shops, "corner", other)
    return shops, "corner", other


BACK = [pin_back, merge_back, assign_back]


@pytest.mark.parametrize("prepare", BACK)
def test_what_comes_back_in_another_bucket_is_refused_by_no_trigger_of_the_old_one(
    cluster: ShardCluster, prepare: Callable[[ShardCluster], tuple[EntityGroup, Key, int]]
) -> None:
    group, key, bucket = prepare(cluster)
    write(cluster, group, key)

    move(cluster, group, bucket)

    write(cluster, group, key, 2)
    assert read(cluster, group, key) == [1, 2]


@pytest.mark.parametrize("prepare", BACK)
def test_triggers_that_stay_as_they_were_would_refuse_it(
    cluster: ShardCluster,
    prepare: Callable[[ShardCluster], tuple[EntityGroup, Key, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group, key, bucket = prepare(cluster)
    monkeypatch.setattr(receiving, "renew_tombstones", lambda *_, **__: None)

    move(cluster, group, bucket)

    with pytest.raises(StaleShardMapError):
        write(cluster, group, key, 2)


def test_a_renewed_trigger_still_refuses_what_has_left(cluster: ShardCluster) -> None:
    strategy = cluster.router.map_of(tenants).strategy
    other = next(k for k in range(8, 999) if strategy.bucket(k) == strategy.bucket(7))
    first = cluster.router.map_of(tenants).shard_of(7)
    group, _, bucket = pin_back(cluster)

    move(cluster, group, bucket)

    raw_write(cluster, first, 7)
    with pytest.raises(Exception, match="does not own bucket"):
        raw_write(cluster, first, other)


def test_a_bucket_that_moves_is_not_changed(cluster: ShardCluster) -> None:
    bucket = cluster.router.map_of(tenants).strategy.bucket(7)
    owner = cluster.router.map_of(tenants).shard_of(7)

    def try_to_pin() -> None:
        for dry_run in (True, False):
            with pytest.raises(MapChangeRefusedError, match="is moving"):
                cluster.pin(tenants, 7, dry_run=dry_run)

    with armed("move.copied", try_to_pin), armed("move.handed-over", try_to_pin):
        cluster.move(tenants, bucket, to=ELSEWHERE[owner], clean_after_seconds=0)

    assert cluster.pin(tenants, 7).changed


@pytest.mark.parametrize("step", ["map-change.begun", "map-change.prepared", "map-change.applied"])
def test_a_bucket_of_which_a_change_is_not_finished_does_not_move(
    cluster: ShardCluster, step: str
) -> None:
    def try_to_move() -> None:
        cluster.router.refresh()
        for bucket in cluster.router.map_of(tenants).buckets_since(home):
            with pytest.raises(StaleMoveError, match="under way"):
                move(cluster, tenants, bucket)

    home = cluster.router.map_of(tenants).strategy.bucket(7)
    with armed(step, try_to_move):
        pinned = cluster.pin(tenants, 7)

    move(cluster, tenants, pinned.gaining)
    move(cluster, tenants, home)


def test_nothing_is_pinned_out_of_a_bucket_while_what_was_pinned_before_moves(
    cluster: ShardCluster,
) -> None:
    strategy = cluster.router.map_of(tenants).strategy
    other = next(k for k in range(8, 999) if strategy.bucket(k) == strategy.bucket(7))
    pinned = cluster.pin(tenants, 7)

    def try_to_pin() -> None:
        with pytest.raises(MapChangeRefusedError, match="bucket 8 is moving"):
            cluster.pin(tenants, other)

    with armed("move.copied", try_to_pin):
        move(cluster, tenants, pinned.gaining)

    assert cluster.pin(tenants, other).changed


def test_nothing_is_lost_while_tenants_are_pinned_moved_and_put_back_under_writers(
    shard_urls: list[URL],
) -> None:
    with sharded_shop(shard_urls[:2]) as cluster:
        keys = keys_in(3, 3)
        with writing(cluster, keys) as writers:
            for _ in range(at_most(1)):
                home = cluster.router.map_of(households).shard_of(keys[1])
                pinned = cluster.pin(households, keys[0])
                for to in (ELSEWHERE[home], home):
                    cluster.move(households, pinned.gaining, to=to, clean_after_seconds=0)
                cluster.unpin(households, keys[0])
                cluster.move(households, 3, to=ELSEWHERE[home], clean_after_seconds=0)

        check_ledger(cluster, writers)
