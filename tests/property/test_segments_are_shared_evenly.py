"""Workers that compute the same plan share segments evenly, and then leave it at that."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from datapatterns.cqrs.running.sharing import SegmentKey, Version, plan_shares

NAMES = ["ann", "bob", "cid", "dot", "eve"]
VERSIONS: list[Version] = [("p", 1), ("p", 2), ("q", 1), ("r", 1), ("s", 7)]

keys = st.builds(
    lambda version, shard: SegmentKey(version[0], version[1], shard),
    st.sampled_from(VERSIONS),
    st.integers(0, 5),
)
owners = st.dictionaries(keys, st.none() | st.sampled_from([*NAMES, "an operator"]), max_size=30)
knowing_all = st.sets(st.sampled_from(NAMES), min_size=1).map(
    lambda names: dict.fromkeys(sorted(names), frozenset(VERSIONS))
)
knowing_some = st.dictionaries(
    st.sampled_from(NAMES), st.frozensets(st.sampled_from(VERSIONS)), min_size=1
)


@given(owners, knowing_all)
def test_each_version_and_their_sum_are_spread_evenly(
    owners: dict[SegmentKey, str | None], workers: dict[str, frozenset[Version]]
) -> None:
    plan = plan_shares(owners, workers)

    assert even(Counter(plan.values()), workers)
    for version in VERSIONS:
        mine = Counter(worker for key, worker in plan.items() if key.of_version == version)
        assert even(mine, workers)


@given(owners, knowing_some)
def test_each_segment_goes_to_somebody_who_knows_it_but_for_what_others_hold(
    owners: dict[SegmentKey, str | None], workers: dict[str, frozenset[Version]]
) -> None:
    plan = plan_shares(owners, workers)

    for key, owner in owners.items():
        knowing = {name for name, known in workers.items() if key.of_version in known}
        if owner is not None and owner not in workers:
            assert key not in plan
        elif knowing:
            assert plan[key] in knowing
        else:
            assert key not in plan


@given(owners, knowing_some)
def test_what_is_shared_out_stays(
    owners: dict[SegmentKey, str | None], workers: dict[str, frozenset[Version]]
) -> None:
    plan = plan_shares(owners, workers)

    assert plan_shares(owners | plan, workers) == plan


@given(owners, knowing_all, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(
    owners: dict[SegmentKey, str | None],
    workers: dict[str, frozenset[Version]],
    random: Random,
) -> None:
    shuffled = list(owners.items())
    random.shuffle(shuffled)

    assert plan_shares(dict(shuffled), dict(reversed(workers.items()))) == plan_shares(
        owners, workers
    )


def test_nothing_moves_where_all_is_even() -> None:
    held: dict[SegmentKey, str | None] = {
        SegmentKey("p", 1, shard): worker for shard, worker in enumerate(["ann", "bob", "bob"])
    }

    assert plan_shares(held, dict.fromkeys(["ann", "bob"], frozenset({("p", 1)}))) == held


def even(shares: Counter[str], workers: dict[str, frozenset[Version]]) -> bool:
    counts = [shares[worker] for worker in workers]
    return max(counts) - min(counts) <= 1
