"""Moves die anywhere, beside writers of all kinds: nothing is lost, nothing is doubled."""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from random import Random

import pytest
from sqlalchemy import URL, create_engine, text

from datapatterns import DataLayer
from datapatterns.failpoints import armed
from datapatterns.sharding import Move, ShardCluster
from datapatterns.sharding.moving import cutting
from datapatterns.testing import wait_until
from tests.fixtures import doomed_workers as workers
from tests.fixtures.atomic import Died
from tests.fixtures.effort import THOROUGH
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.moving_writers import WAYS, Way, check_ledger, with_another, writing
from tests.fixtures.shard_model import Basket, households, named, sharded_shop

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

BUCKET = 5
MOVES = 300 if THOROUGH else 4
TOO_LATE_TO_UNDO = {
    "move.cut",
    "move.target-owns",
    "move.handed-over",
    "move.batch-cleaned",
    "move.source-cleaned",
}


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(shard_urls[:2]) as cluster:
        yield cluster


@pytest.fixture
def urls(shard_urls: list[URL]) -> list[str]:
    return [url.render_as_string(hide_password=False) for url in shard_urls[:2]]


def die() -> None:
    raise Died


def with_two_phases(url: URL) -> dict[str, Way]:
    """Return how to write on two shards at once, if the server prepares transactions."""
    engine = create_engine(url)
    with engine.connect() as conn:
        allowed = conn.scalar(text("SHOW max_prepared_transactions")) != "0"
    engine.dispose()
    return {"two phases": with_another} if allowed else {}


def ended(cluster: ShardCluster) -> list[Move]:
    return [move for move in cluster.moves(live=False) if move.state in {"cleaned", "aborted"}]


def die_in_the_middle(
    cluster: ShardCluster, urls: list[str], failpoint: str, visit: int
) -> tuple[str, str]:
    """Let a process die that moves the bucket, then write; return the two shards."""
    source = cluster.router.map_of(households).owners[BUCKET]
    target = "s1" if source == "s0" else "s0"
    first, second, third = keys_in(BUCKET, 3)
    put(cluster, first, lines=2)
    put(cluster, second, lines=1)
    run_until_failpoint(
        workers.move_a_bucket, failpoint, str(BUCKET), target, urls[0], *urls, visit=visit
    )
    if failpoint not in {"move.cut", "move.target-owns"}:  # then nobody has it until it is resumed
        cluster.router.refresh()
        put(cluster, third, lines=3)
        with cluster.session() as session, session.begin():
            basket = session.get_one(Basket, (second, 1))
            session.delete(basket.lines[0])
            session.delete(basket)
    return source, target


@pytest.mark.parametrize(("failpoint", "visit"), workers.MOVING)
def test_a_move_whose_worker_died_goes_on_from_there(
    cluster: ShardCluster, urls: list[str], failpoint: str, visit: int
) -> None:
    source, target = die_in_the_middle(cluster, urls, failpoint, visit)

    wait_until(lambda: cluster.resume_moves(clean_after_seconds=0) or ended(cluster))

    assert [move.state for move in ended(cluster)] == ["cleaned"]
    assert states_of(cluster, BUCKET) == {source: "cleaned", target: "owned"}
    assert sum(bucket_rows(cluster, source, BUCKET)) == 0
    wanted = (2, 3) if failpoint in {"move.cut", "move.target-owns"} else (2, 5)
    assert bucket_rows(cluster, target, BUCKET) == wanted
    assert not cluster.resume_moves()


def test_a_worker_of_a_layer_hands_over_what_nobody_owns_since_its_mover_was_killed(
    cluster: ShardCluster, urls: list[str]
) -> None:
    source, target = die_in_the_middle(cluster, urls, "move.cut", 1)
    assert states_of(cluster, BUCKET) == {source: "moved", target: "incoming"}

    with (
        DataLayer(urls[0], shards={"s0": urls[0], "s1": urls[1]}) as layer,
        layer.cluster(households),
    ):
        wait_until(lambda: not any(move.is_leased for move in cluster.moves()))
        worker = layer.worker()
        worker.run(until=lambda _conn: bool(ended(cluster)))

    assert states_of(cluster, BUCKET) == {source: "cleaned", target: "owned"}
    cluster.router.refresh()
    put(cluster, keys_in(BUCKET, 4)[-1])


@pytest.mark.parametrize(("failpoint", "visit"), workers.MOVING)
def test_a_move_whose_worker_died_can_be_undone_before_its_cut(
    cluster: ShardCluster, urls: list[str], failpoint: str, visit: int
) -> None:
    source, target = die_in_the_middle(cluster, urls, failpoint, visit)

    wait_until(lambda: not any(move.is_leased for move in cluster.moves()))
    move = cluster.abort_move(households, BUCKET)

    assert move is not None
    is_done = failpoint in TOO_LATE_TO_UNDO
    assert move.state == ("cleaned" if is_done else "aborted")
    owner, other = (target, source) if is_done else (source, target)
    held = states_of(cluster, BUCKET)
    # Of what was only planned, no shard has heard.
    left_behind = None if failpoint == "move.planned" else "cleaned"
    assert (held[owner], held.get(other)) == ("owned", left_behind)
    wanted = (2, 3) if failpoint in {"move.cut", "move.target-owns"} else (2, 5)
    assert bucket_rows(cluster, owner, BUCKET) == wanted
    assert bucket_rows(cluster, other, BUCKET) == (0, 0)
    put(cluster, keys_in(BUCKET, 4)[-1])


@pytest.mark.parametrize("compared", ["in the cut", "before the cut"])
def test_moves_that_die_anywhere_beside_writers_of_all_kinds_lose_nothing(
    cluster: ShardCluster,
    shard_urls: list[URL],
    monkeypatch: pytest.MonkeyPatch,
    compared: str,
) -> None:
    if compared == "before the cut":
        monkeypatch.setattr(cutting, "ROWS_COMPARED_AT_ONCE", -1)
    dice, buckets = Random(11), (1, 2, 3)  # noqa: S311 -- the same in every run
    keys = [key for bucket in buckets for key in keys_in(bucket, 3)]
    ends: Counter[str] = Counter()
    # Its map is as old as it can be: only a refusal makes it look again.
    stale = ShardCluster(
        control=shard_urls[0],
        shards=named(shard_urls[:2]),
        groups=[households],
        poll_seconds=3_600,
    )
    ways = {**WAYS, **with_two_phases(shard_urls[0])}

    with (
        stale,
        writing(cluster, keys, threads=3, ways=ways) as writers,
        writing(stale, keys, threads=2, numbers=10, wanted=writers.fixed) as late,
    ):
        for number in range(MOVES):
            bucket = dice.choice(buckets)
            owner = cluster.router.map_of(households).owners[bucket]
            to = "s1" if owner == "s0" else "s0"
            place = dice.choice([*workers.MOVING, None, None])
            with armed(place[0], die) if place else nullcontext():
                try:
                    move = cluster.move(households, bucket, to=to, clean_after_seconds=0)
                    ends[move.state] += 1
                except Died:
                    ends["died"] += 1
            if number % 3 == 2:
                cluster.abort_move(households, bucket)
            cluster.resume_moves(clean_after_seconds=0)

    writers.ledger |= late.ledger
    writers.problems += late.problems
    check_ledger(cluster, writers)
    assert min(writers.commits.values()) > 0
    assert set(writers.commits) == set(ways)
    assert late.scatters > 0
    assert cluster.moves() == []
    for bucket in buckets:
        assert sorted(states_of(cluster, bucket).values()).count("owned") == 1
    assert {table.misplaced for shard in cluster.stats() for table in shard.tables} == {0}
