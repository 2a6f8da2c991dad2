"""A plan says what it is good for, can be cut short, and survives a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.errors import SettingsError
from datapatterns.sharding import BucketMove, RebalancePlan, plan_moves

SHARDS = ["s0", "s1", "s2", "s3"]


@st.composite
def plans(draw: st.DrawFn) -> RebalancePlan:
    shards = SHARDS[: draw(st.integers(2, 4))]
    weights = {shard: draw(st.sampled_from([0.5, 1.0, 2.0])) for shard in shards}
    draining = draw(st.sets(st.sampled_from(shards), max_size=1))
    costs = draw(st.lists(st.integers(0, 50).map(float), min_size=4, max_size=40))
    placement = {bucket: draw(st.sampled_from(shards)) for bucket in range(len(costs))}
    held = dict.fromkeys(shards, 0.0)
    for bucket, shard in placement.items():
        held[shard] += costs[bucket]
    moves = plan_moves(placement, dict(enumerate(costs)), weights, draining=draining)
    return RebalancePlan("tenant", "rows", 3, weights, held, tuple(draining), tuple(moves))


def made(**changed: object) -> RebalancePlan:
    given: dict[str, object] = {
        "group": "tenant",
        "by": "rows",
        "epoch": 1,
        "weights": {"s0": 1.0, "s1": 2.0},
        "held": {"s0": 30.0, "s1": 0.0},
        "draining": (),
        "moves": (BucketMove(3, "s0", "s1", 20.0),),
    }
    return RebalancePlan(**(given | changed))  # type: ignore[arg-type]  # of any type, on purpose


@given(plan=plans())
def test_a_plan_is_read_from_a_file_as_it_was_written(plan: RebalancePlan) -> None:
    assert RebalancePlan.from_json(plan.to_json()) == plan
    assert RebalancePlan.from_json(plan.to_json().encode()) == plan


@given(plan=plans())
def test_a_plan_tells_what_it_evens_out(plan: RebalancePlan) -> None:
    assert sum(plan.held_after.values()) == pytest.approx(sum(plan.held.values()))
    assert all(plan.held_after[shard] == 0 for shard in plan.draining)
    if not plan.draining:
        assert plan.imbalance_after <= plan.imbalance_before + 1e-9
    assert plan.imbalance_after >= 1 - 1e-9
    assert str(plan).startswith(f"tenant: {len(plan)} move")


@given(plan=plans(), moves_max=st.integers(0, 9), cost_max=st.integers(0, 300))
def test_a_plan_that_is_cut_short_keeps_within_its_limits(
    plan: RebalancePlan, moves_max: int, cost_max: int
) -> None:
    capped = plan.capped(moves_max=moves_max, cost_max=cost_max)

    assert {*capped} <= {*plan}
    assert len(capped) <= moves_max
    assert capped.cost <= cost_max
    assert plan.capped() == plan
    assert sum(map(len, capped.rounds(at_once=2))) == len(capped)


def test_a_plan_is_drawn() -> None:
    assert str(made()).splitlines() == [
        "tenant: 1 move of 20 rows; the fullest shard from 3.00 to 1.00 of the mean",
        "  s0  now   ██████████████████████████████  30",
        "      then  ██████████                      10",
        "  s1  now                                   0",
        "      then  ██████████                      20",
    ]
    assert "s0  now" in str(made(draining=("s0",)))
    assert "30 (draining)" in str(made(draining=("s0",)))


def test_a_plan_for_empty_shards_is_even() -> None:
    empty = made(held={}, moves=())

    assert (empty.imbalance_before, empty.imbalance_after) == (1.0, 1.0)
    assert str(empty).splitlines()[1].split() == ["s0", "now", "0"]


@pytest.mark.parametrize(
    "written",
    [
        "",
        "[]",
        "{}",
        b"\xff",
        made().to_json().replace('"s0": 1.0', '"s0": 0.0'),
        made().to_json().replace('"s0": 1.0', '"s0": -1.0'),
        made().to_json().replace('"target": "s1"', '"target": "s0"'),
        made().to_json().replace('"target": "s1"', '"target": "s9"'),
        made().to_json().replace('"bucket": 3', '"bucket": -3'),
        made().to_json().replace('"bucket": 3', '"bucket": "3"'),
        made().to_json().replace('"cost": 20.0', '"cost": 1e999'),
        made().to_json().replace('"draining": []', '"draining": ["s0", "s1"]'),
    ],
)
def test_what_is_no_plan_is_refused(written: str | bytes) -> None:
    with pytest.raises(SettingsError, match="make it anew"):
        RebalancePlan.from_json(written)


def test_a_bucket_moves_once() -> None:
    with pytest.raises(SettingsError, match="a bucket moves twice"):
        made(moves=(BucketMove(3, "s0", "s1", 1.0), BucketMove(3, "s1", "s0", 1.0)))
