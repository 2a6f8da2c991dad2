"""Whatever lies where, a plan empties what is drained, evens out the rest, and then has no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.errors import SettingsError
from datapatterns.sharding import BucketMove, in_rounds, plan_moves

SHARDS = [f"s{number}" for number in range(6)]


@st.composite
def clusters(
    draw: st.DrawFn,
) -> tuple[dict[int, str], dict[int, float], dict[str, float], set[str]]:
    shards = SHARDS[: draw(st.integers(1, 6))]
    weights = {shard: draw(st.sampled_from([0.5, 1.0, 1.0, 2.0])) for shard in shards}
    draining = draw(st.sets(st.sampled_from(shards), max_size=len(shards) - 1))
    costs = draw(st.lists(st.integers(0, 50).map(float), max_size=40))
    placement = {bucket: draw(st.sampled_from(shards)) for bucket in range(len(costs))}
    return placement, dict(enumerate(costs)), weights, draining


def used(
    placement: dict[int, str], costs: dict[int, float], weights: dict[str, float]
) -> dict[str, float]:
    found = dict.fromkeys(weights, 0.0)
    for bucket, shard in placement.items():
        found[shard] += costs[bucket] / weights[shard]
    return found


@given(cluster=clusters())
def test_a_plan_evens_out_and_is_then_done(
    cluster: tuple[dict[int, str], dict[int, float], dict[str, float], set[str]],
) -> None:
    placement, costs, weights, draining = cluster

    moves = plan_moves(placement, costs, weights, draining=draining)

    after = placement | {move.bucket: move.target for move in moves}
    assert len({move.bucket for move in moves}) == len(moves)
    assert all(placement[move.bucket] == move.source != move.target for move in moves)
    assert not draining & {*after.values()}
    if not draining:
        fullest = max(used(placement, costs, weights).values())
        assert max(used(after, costs, weights).values()) <= fullest + 1e-9
    assert plan_moves(after, costs, weights, draining=draining) == []


@given(cluster=clusters(), at_once=st.integers(1, 4))
def test_no_shard_takes_part_in_two_moves_at_once(
    cluster: tuple[dict[int, str], dict[int, float], dict[str, float], set[str]], at_once: int
) -> None:
    placement, costs, weights, draining = cluster
    moves = plan_moves(placement, costs, weights, draining=draining, threshold=0)

    rounds = in_rounds(moves, at_once=at_once)

    assert sorted(move.bucket for now in rounds for move in now) == [m.bucket for m in moves]
    for now in rounds:
        assert 0 < len(now) <= at_once
        assert len({shard for m in now for shard in (m.source, m.target)}) == 2 * len(now)


def test_a_shard_that_is_added_takes_the_fewest_buckets_that_even_out() -> None:
    placement = {bucket: f"s{bucket % 4}" for bucket in range(1024)}
    weights = dict.fromkeys(["s0", "s1", "s2", "s3", "s4"], 1.0)

    moves = plan_moves(placement, dict.fromkeys(placement, 1.0), weights, threshold=0)

    assert len(moves) == 204
    assert {move.target for move in moves} == {"s4"}


def test_what_is_drained_goes_where_there_is_room() -> None:
    placement = {bucket: f"s{bucket % 3}" for bucket in range(96)}
    weights = {"s0": 1.0, "s1": 1.0, "s2": 2.0}

    moves = plan_moves(
        placement, dict.fromkeys(placement, 1.0), weights, draining={"s0"}, threshold=0
    )

    assert [sum(move.target == shard for move in moves) for shard in ("s1", "s2")] == [0, 32]


def test_a_plan_can_be_short() -> None:
    placement = dict.fromkeys(range(10), "s0")
    weights = {"s0": 1.0, "s1": 1.0}

    moves = plan_moves(placement, dict.fromkeys(placement, 1.0), weights, max_moves=2)

    assert moves == [BucketMove(0, "s0", "s1", 1.0), BucketMove(1, "s0", "s1", 1.0)]


@pytest.mark.parametrize(
    ("weights", "draining", "told"),
    [
        ({"s0": 1.0}, {"s0"}, "every shard is to be emptied"),
        ({"s1": 1.0}, set[str](), "no weight for \\['s0'\\]"),
        ({"s0": 1.0, "s1": 0.0}, set[str](), "positive"),
        ({"s0": 1.0}, {"s9"}, "no weight for \\['s9'\\]"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    weights: dict[str, float], draining: set[str], told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        plan_moves({0: "s0"}, {0: 1.0}, weights, draining=draining)
    with pytest.raises(ValueError, match="never end"):
        in_rounds([], at_once=0)
