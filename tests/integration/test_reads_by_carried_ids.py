"""Rows are found by an id alone, whatever became of the bucket that it names."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, select, union_all

from datapatterns.errors import ScatterRefusedError, ShardKeyError, UnroutableStatementError
from datapatterns.sharding import ShardCluster, parts_of_id
from tests.fixtures.changing_maps import (
    DayNote,
    TenantNote,
    days,
    noted,
    tenants,
    write,
)

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


def made(cluster: ShardCluster, key: int) -> int:
    row_id = cluster.ids(tenants).next(key)
    write(cluster, tenants, key, row_id)
    return row_id


def find(cluster: ShardCluster, row_id: int) -> list[int]:
    wanted = select(TenantNote).execution_options(carried_id=(TenantNote.id, row_id))
    with cluster.session() as session:
        return [note.key for note in session.scalars(wanted)]


def move(cluster: ShardCluster, bucket: int) -> None:
    cluster.router.refresh()
    owner = cluster.router.map_of(tenants).owners[bucket]
    cluster.move(tenants, bucket, to=ELSEWHERE[owner], clean_after_seconds=0)


def test_a_row_is_found_wherever_its_bucket_or_its_key_went(cluster: ShardCluster) -> None:
    row_id, other = made(cluster, 7), made(cluster, 8)
    born = parts_of_id(row_id).bucket

    assert (find(cluster, row_id), find(cluster, other)) == ([7], [8])
    move(cluster, born)
    assert find(cluster, row_id) == [7]
    pinned = cluster.pin(tenants, 7)
    assert find(cluster, row_id) == [7]
    move(cluster, pinned.gaining)
    assert find(cluster, row_id) == [7]
    of_pinned = made(cluster, 7)
    assert parts_of_id(of_pinned).bucket == pinned.gaining
    move(cluster, pinned.gaining)
    cluster.unpin(tenants, 7)
    assert (find(cluster, row_id), find(cluster, of_pinned)) == ([7], [7])


def test_an_old_map_finds_it_when_it_repeats(cluster: ShardCluster, stale: ShardCluster) -> None:
    row_id = made(cluster, 7)
    move(cluster, cluster.pin(tenants, 7).gaining)

    with pytest.raises(Exception, match="repeat the whole transaction"):
        find(stale, row_id)
    assert find(stale, row_id) == [7]


def test_nothing_is_found_where_a_condition_says_otherwise(cluster: ShardCluster) -> None:
    row_id = made(cluster, 7)
    options = {"carried_id": (TenantNote.id, row_id)}

    with cluster.session() as session:
        of_all = select(TenantNote.key).execution_options(**options)
        assert session.scalars(of_all).all() == [7]
        assert session.scalars(of_all.where(TenantNote.key == 7)).all() == [7]
        assert session.scalars(of_all.where(TenantNote.key == 8)).all() == []


def test_what_is_no_id_or_cannot_be_read_so_is_refused(cluster: ShardCluster) -> None:
    with pytest.raises(ShardKeyError, match="no id of this group"):
        find(cluster, -1)
    with pytest.raises(ShardKeyError, match="no bucket 8191"):
        find(cluster, 8191 << 10)
    both = union_all(select(TenantNote.id), select(TenantNote.id))
    with (
        cluster.session() as session,
        pytest.raises(UnroutableStatementError, match="single SELECT"),
    ):
        session.execute(both.execution_options(carried_id=(TenantNote.id, 1)))
    with cluster.session() as session, pytest.raises(ScatterRefusedError):
        session.execute(select(DayNote.id))
    assert cluster.router.map_of(days).buckets
