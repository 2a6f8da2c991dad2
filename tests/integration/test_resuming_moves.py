"""Moves whose process died go on, in the hands of whoever knows all that moves."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
from sqlalchemy import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.errors import MoveRefusedError
from datapatterns.failpoints import armed
from datapatterns.runtime import ShardMoveLoop
from datapatterns.sharding import EntityGroup, Hash, MoveProgress, ShardCluster
from tests.fixtures.atomic import Died
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.shard_model import households, named, sharded_shop

pytestmark = pytest.mark.postgres

BUCKET, OTHER = 5, 7
part_of_it = EntityGroup("household", strategy=Hash(buckets=64))
nothing_of_it = EntityGroup("household", strategy=Hash(buckets=64))


class PartlyDeclared(DeclarativeBase):
    pass


class BasketAlone(PartlyDeclared):
    __tablename__ = "basket"
    __shard__ = part_of_it.by("household_id")

    household_id: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(shard_urls[:2]) as cluster:
        yield cluster


def die() -> None:
    raise Died


def die_at(cluster: ShardCluster, failpoint: str, bucket: int) -> tuple[str, str]:
    put(cluster, keys_in(bucket, 1)[0], lines=2)
    source = cluster.router.map_of(households).owners[bucket]
    target = "s1" if source == "s0" else "s0"
    with armed(failpoint, die), suppress(Died):
        cluster.move(households, bucket, to=target, clean_after_seconds=0)
    return source, target


def test_a_move_that_fails_keeps_no_other_from_its_hand_over(cluster: ShardCluster) -> None:
    source, target = die_at(cluster, "move.cut", BUCKET)
    from_there, to_there = die_at(cluster, "move.cut", OTHER)

    def fail(progress: MoveProgress) -> None:
        if progress.move.bucket == BUCKET:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        cluster.finish_moves(clean_after_seconds=0, progress=fail)

    assert states_of(cluster, OTHER) == {from_there: "cleaned", to_there: "owned"}
    assert ShardMoveLoop(cluster.finish_moves, seconds=3).step() == 3
    assert states_of(cluster, BUCKET) == {source: "cleaned", target: "owned"}
    assert cluster.moves() == []


def test_all_buckets_are_handed_over_before_any_is_cleaned(cluster: ShardCluster) -> None:
    for bucket in (BUCKET, OTHER):
        die_at(cluster, "move.cut", bucket)
    seen: list[tuple[int, str]] = []

    cluster.finish_moves(
        clean_after_seconds=0,
        progress=lambda told: seen.append((told.move.bucket, told.move.state)),
    )

    handed_over = [seen.index((bucket, "handed_over")) for bucket in (BUCKET, OTHER)]
    assert max(handed_over) < min(
        number for number, (_, state) in enumerate(seen) if state == "cleaned"
    )


def test_what_died_before_its_cut_is_left_to_whoever_resumes_it(cluster: ShardCluster) -> None:
    source, target = die_at(cluster, "move.copied", BUCKET)

    assert cluster.finish_moves() == []
    put(cluster, keys_in(BUCKET, 2)[1])
    [move] = cluster.resume_moves(clean_after_seconds=0)

    assert move.state == "cleaned"
    assert (bucket_rows(cluster, source, BUCKET), bucket_rows(cluster, target, BUCKET)) == (
        (0, 0),
        (2, 2),
    )


@pytest.mark.parametrize(
    ("group", "told"), [(part_of_it, "does not declare it"), (nothing_of_it, "no table of it")]
)
def test_who_does_not_declare_all_tables_does_not_go_on(
    cluster: ShardCluster, shard_urls: list[URL], group: EntityGroup, told: str
) -> None:
    source, target = die_at(cluster, "move.copied", BUCKET)
    urls = shard_urls[:2]

    with (
        ShardCluster(control=urls[0], shards=named(urls), groups=[group]) as other,
        pytest.raises(MoveRefusedError, match=told),
    ):
        other.resume_moves(clean_after_seconds=0)

    assert states_of(cluster, BUCKET) == {source: "owned", target: "incoming"}
    assert [move.state for move in cluster.moves()] == ["copying"]
    cluster.resume_moves(clean_after_seconds=0)
    assert bucket_rows(cluster, target, BUCKET) == (1, 2)
