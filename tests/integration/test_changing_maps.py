"""Maps that are split, merged, pinned and assigned while they are in use."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, func, select, text
from sqlalchemy.exc import IntegrityError

from datapatterns.errors import (
    MapChangeRefusedError,
    ShardKeyError,
    ShardMapCorruptError,
)
from datapatterns.sharding import EntityGroup, Key, MapChange, ShardCluster
from tests.fixtures.changing_maps import (
    NOTES,
    control_of,
    days,
    lands,
    move_by_hand,
    noted,
    read,
    shops,
    tenants,
    write,
)

pytestmark = pytest.mark.postgres

ELSEWHERE = {"s0": "s1", "s1": "s0"}


@pytest.fixture
def urls(shard_urls: list[URL]) -> list[URL]:
    return shard_urls[:2]


@pytest.fixture
def cluster(urls: list[URL]) -> Iterator[ShardCluster]:
    with noted(urls) as cluster:
        yield cluster


@pytest.fixture
def stale(cluster: ShardCluster, urls: list[URL]) -> Iterator[ShardCluster]:
    """Another process, which has read the map and will not ask for a new one."""
    with noted(urls, poll_seconds=3600, create=False) as other:
        for group in other.groups:
            other.router.map_of(group)
        assert cluster.groups == other.groups
        yield other


def neighbour_of(cluster: ShardCluster, group: EntityGroup, key: int) -> int:
    """Another key of the same bucket."""
    strategy = cluster.router.map_of(group).strategy
    return next(k for k in range(key + 1, 10_000) if strategy.bucket(k) == strategy.bucket(key))


# What changes ----------------------------------------------------------------------------------


def test_a_pinned_key_has_a_bucket_for_itself_where_its_rows_are(cluster: ShardCluster) -> None:
    write(cluster, tenants, 7)
    before = cluster.router.map_of(tenants)

    done = cluster.pin(tenants, 7)

    after = cluster.router.map_of(tenants)
    assert done == MapChange(
        "tenant", "pin", 7, before.strategy.bucket(7), 8, before.shard_of(7), epoch=2
    )
    assert after.strategy.bucket(7) == 8
    assert after.shard_of(7) == before.shard_of(7)
    assert read(cluster, tenants, 7) == [1]
    write(cluster, tenants, 7, 2)
    assert read(cluster, tenants, 7) == [1, 2]
    assert all(table.misplaced == 0 for shard in cluster.stats() for table in shard.tables)


def test_a_pinned_key_can_be_moved_without_any_other(cluster: ShardCluster) -> None:
    other = neighbour_of(cluster, tenants, 7)
    write(cluster, tenants, 7)
    write(cluster, tenants, other)

    pinned = cluster.pin(tenants, 7)
    move_by_hand(cluster, tenants, pinned.gaining, ELSEWHERE[pinned.shard])

    shard_map = cluster.router.map_of(tenants)
    assert shard_map.shard_of(7) != shard_map.shard_of(other)
    assert (read(cluster, tenants, 7), read(cluster, tenants, other)) == ([1], [1])
    with cluster.session(scatter=True) as session:
        assert session.scalar(select(func.count()).select_from(NOTES["tenant"])) == 2
    assert all(table.misplaced == 0 for shard in cluster.stats() for table in shard.tables)


def test_a_range_is_split_and_merged_again(cluster: ShardCluster) -> None:
    for day in (50, 150, 160, 250):
        write(cluster, days, day)
    before = cluster.router.map_of(days).strategy

    split = cluster.split_range(days, at=160)
    halves = cluster.router.map_of(days).strategy
    merged = cluster.merge_ranges(days, at=160)

    assert (split.losing, split.gaining) == (1, 3)
    assert [halves.bucket(day) for day in (50, 159, 160, 199, 200)] == [0, 1, 3, 3, 2]
    assert (merged.losing, merged.gaining) == (3, 1)
    after = cluster.router.map_of(days)
    assert after.strategy == before
    assert after.buckets == [0, 1, 2]
    assert [read(cluster, days, day) for day in (50, 150, 160, 250)] == [[1]] * 4
    # A number never comes back: ids may carry it.
    assert cluster.split_range(days, at=160).gaining == 4


def test_an_unpinned_key_is_back_among_the_others(cluster: ShardCluster) -> None:
    write(cluster, tenants, 7)
    home = cluster.router.map_of(tenants).strategy.bucket(7)
    cluster.pin(tenants, 7)

    done = cluster.unpin(tenants, 7)

    assert (done.losing, done.gaining) == (8, home)
    assert cluster.router.map_of(tenants).strategy.bucket(7) == home
    assert read(cluster, tenants, 7) == [1]


def test_a_key_of_a_directory_is_assigned_to_another_bucket(cluster: ShardCluster) -> None:
    shard_map = cluster.router.map_of(shops)
    here = [b for b in shard_map.buckets_on(shard_map.shard_of("corner")) if b < 8]
    target = next(b for b in here if b != shard_map.strategy.bucket("corner"))
    write(cluster, shops, "corner")

    cluster.assign(shops, "corner", target)

    assert cluster.router.map_of(shops).strategy.bucket("corner") == target
    assert read(cluster, shops, "corner") == [1]


def test_a_listed_key_can_come_later(cluster: ShardCluster) -> None:
    shard_map = cluster.router.map_of(lands)
    cluster.pin(lands, "it")
    cluster.unpin(lands, "it")
    here = shard_map.buckets_on(shard_map.shard_of("it"))
    target = next((bucket for bucket in here if bucket != 2), None)
    if target is None:
        pytest.fail("the test needs a bucket beside the default's")

    cluster.assign(lands, "it", target)

    after = cluster.router.map_of(lands).strategy
    assert (after.bucket("it"), after.bucket("es")) == (target, 2)


def test_pins_stand_above_ranges_lists_and_directories(cluster: ShardCluster) -> None:
    keys: list[tuple[EntityGroup, Key]] = [(days, 150), (shops, "acme"), (lands, "de")]
    for group, key in keys:
        write(cluster, group, key)
        buckets = len(cluster.router.map_of(group).owners)

        assert cluster.pin(group, key).gaining == buckets
        assert cluster.router.map_of(group).strategy.bucket(key) == buckets
        assert read(cluster, group, key) == [1]

    cluster.split_range(days, at=150)
    assert cluster.router.map_of(days).strategy.bucket(150) == 3
    assert cluster.unpin(days, 150).gaining == 4


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_is_so_already_is_left_as_it_is(cluster: ShardCluster, *, dry_run: bool) -> None:
    cluster.pin(tenants, 7)
    epochs = [cluster.router.map_of(group).epoch for group in cluster.groups]

    again = [
        cluster.pin(tenants, 7, dry_run=dry_run),
        cluster.unpin(tenants, 8, dry_run=dry_run),
        cluster.split_range(days, at=100, dry_run=dry_run),
        cluster.merge_ranges(days, at=101, dry_run=dry_run),
        cluster.assign(shops, "acme", 8, dry_run=dry_run),
    ]

    assert [change.changed for change in again] == [False] * 5
    assert [cluster.router.map_of(group).epoch for group in cluster.groups] == epochs


def test_a_dry_run_changes_nothing(cluster: ShardCluster) -> None:
    shard_map = cluster.router.map_of(tenants)

    planned = cluster.pin(tenants, 7, dry_run=True)

    assert (planned.changed, planned.gaining, planned.epoch) == (True, 8, None)
    cluster.router.refresh()
    assert cluster.router.map_of(tenants) == shard_map


# What is refused -------------------------------------------------------------------------------


def test_what_would_move_rows_is_refused(cluster: ShardCluster) -> None:
    pinned = cluster.pin(tenants, 7)
    move_by_hand(cluster, tenants, pinned.gaining, ELSEWHERE[pinned.shard])
    shard_map = cluster.router.map_of(days)
    assert shard_map.owners[0] != shard_map.owners[1]

    with pytest.raises(MapChangeRefusedError, match="move one of them first"):
        cluster.unpin(tenants, 7)
    with pytest.raises(MapChangeRefusedError, match="move one of them first"):
        cluster.merge_ranges(days, at=100, dry_run=True)


def test_what_a_strategy_does_not_have_is_refused(cluster: ShardCluster) -> None:
    with pytest.raises(MapChangeRefusedError, match="Hash has no ranges"):
        cluster.split_range(tenants, at=5)
    with pytest.raises(MapChangeRefusedError, match="Hash has no ranges"):
        cluster.merge_ranges(tenants, at=5)
    with pytest.raises(MapChangeRefusedError, match="pin the key"):
        cluster.assign(tenants, 5, 1)
    with pytest.raises(MapChangeRefusedError, match="no bucket 99"):
        cluster.assign(shops, "corner", 99)
    pinned = cluster.pin(shops, "acme")
    with pytest.raises(MapChangeRefusedError, match="alone"):
        cluster.assign(shops, "corner", pinned.gaining)
    with pytest.raises(MapChangeRefusedError, match="unpin it"):
        cluster.assign(shops, "acme", 1)
    with pytest.raises(ShardKeyError):
        cluster.pin(tenants, "7")


def test_a_shard_that_does_not_own_what_the_map_says_is_told_of(
    cluster: ShardCluster,
) -> None:
    bucket = cluster.router.map_of(tenants).strategy.bucket(7)
    shard = cluster.router.map_of(tenants).shard_of(7)
    with cluster.engines[shard].begin() as conn:
        lost = "UPDATE datapatterns.bucket SET state = 'moved' WHERE group_id = 1 AND bucket = :b"
        conn.execute(text(lost), {"b": bucket})

    with pytest.raises(ShardMapCorruptError, match="does not own bucket"):
        cluster.pin(tenants, 7)

    # It stands in nobody's way.
    with control_of(cluster).connect() as conn:
        assert conn.scalar(text("SELECT count(*) FROM datapatterns.map_change")) == 0


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM datapatterns.range_map WHERE lower_bound = ''",
        "UPDATE datapatterns.range_map SET lower_bound = 'a' WHERE lower_bound = ''",
        "INSERT INTO datapatterns.range_map VALUES (2, 'a', 'a', 0)",
        "INSERT INTO datapatterns.range_map VALUES (2, '', 'a', 2)",
        "INSERT INTO datapatterns.range_map VALUES (2, 'a', 'a', 77)",
        "INSERT INTO datapatterns.key_map VALUES (1, 'guess', 'a', 'a', 0)",
        "INSERT INTO datapatterns.key_map VALUES (1, 'pin', 'a', 'a', 77)",
        "INSERT INTO datapatterns.key_map VALUES (1, 'pin', 'a', 'a', 0), (1, 'pin', 'b', 'b', 0)",
        "UPDATE datapatterns.bucket_map SET parent = bucket WHERE bucket = 1",
        "UPDATE datapatterns.bucket_map SET parent = 77 WHERE bucket = 78",
        "UPDATE datapatterns.bucket_map SET merged_into = bucket WHERE bucket = 1",
        "UPDATE datapatterns.bucket_map SET merged_into = 77 WHERE bucket = 1",
        "UPDATE datapatterns.bucket_map SET generation = -1",
        "UPDATE datapatterns.bucket SET generation = -1",
        "INSERT INTO datapatterns.map_change VALUES (1, 'pin', 'a', 'a', 1, 1, 's0', 0)",
        "INSERT INTO datapatterns.map_change VALUES (1, 'guess', 'a', 'a', 1, 2, 's0', 0)",
        "INSERT INTO datapatterns.map_change VALUES (77, 'pin', 'a', 'a', 1, 2, 's0', 0)",
    ],
)
def test_the_tables_keep_their_invariants(cluster: ShardCluster, statement: str) -> None:
    if "78" in statement:
        statement = "INSERT INTO datapatterns.bucket_map VALUES (1, 9, 's0', 1, 77)"
    with control_of(cluster).connect() as conn, pytest.raises(IntegrityError):
        conn.execute(text(statement))
