"""The explorer finds what is wrong with every wrong design, and nothing wrong with the right ones.

The wrong ones are the guard of all else that is explored here: an explorer that finds nothing in
them proves nothing.
"""

import random
from functools import partial

import pytest

from datapatterns.testing.interleaving import Explorer, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, torture
from tests.interleavings.designs import DESIGNS
from tests.interleavings.designs.counts import COUNTS
from tests.interleavings.designs.design import Design, Stage, Tasks

MAX_SCHEDULES = 20_000

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

WRONG = {name: design for name, design in DESIGNS.items() if design.wrong}
RIGHT = {name: design for name, design in DESIGNS.items() if not design.wrong}
SEARCHED = [
    name
    for name, design in WRONG.items()
    if (THOROUGH or name.startswith(("read_model", "relay"))) and not design.eludes_chance
]


def scenario(stage: Stage, design: Design) -> Tasks:
    stage.redis.flushdb()
    stage.plain.execute(design.set_up.encode())
    return design.tasks(stage)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_design_is_found_and_its_story_can_be_told_again(
    name: str, explorer: Explorer, stage: Stage
) -> None:
    design = DESIGNS[name]
    prepare, check = partial(scenario, stage, design), partial(design.check, stage)

    with pytest.raises(InterleavingError) as found:
        explorer.explore(
            prepare,
            invariant=check,
            max_preemptions=design.search.preemptions,
            crash_at=design.search.fault_at,
            faults=design.search.faults,
            allowed_errors=design.allowed_errors,
        )
    with pytest.raises(InterleavingError) as replayed:
        explorer.replay(
            found.value.token, prepare, invariant=check, allowed_errors=design.allowed_errors
        )

    assert str(replayed.value.outcome.story) == str(found.value.outcome.story)


@pytest.mark.parametrize("name", SEARCHED)
def test_a_wrong_design_is_found_by_chance(name: str, explorer: Explorer, stage: Stage) -> None:
    design = DESIGNS[name]

    with pytest.raises(InterleavingError) as found:
        explorer.search(
            partial(scenario, stage, design),
            invariant=partial(design.check, stage),
            examples=design.examples,
            crash_at=design.search.fault_at if design.search.faults else None,
            faults=design.search.faults,
            allowed_errors=design.allowed_errors,
        )

    assert found.value.token


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_wrong_with_a_right_design(name: str, explorer: Explorer, stage: Stage) -> None:
    design = DESIGNS[name]

    explored = explorer.explore(
        partial(scenario, stage, design),
        invariant=partial(design.check, stage),
        max_preemptions=design.everyday_preemptions,
        crash_at=design.search.fault_at,
        faults=design.search.faults,
        allowed_errors=design.allowed_errors,
        max_schedules=MAX_SCHEDULES,
    )

    assert explored.exhausted


@torture
@pytest.mark.parametrize("name", DESIGNS)
def test_the_search_is_the_same_every_time(name: str, explorer: Explorer, stage: Stage) -> None:
    design, broken = DESIGNS[name], 0

    def count(outcome: Outcome) -> None:
        nonlocal broken
        try:
            design.check(stage, outcome)
        except AssertionError:
            broken += 1

    explored = explorer.explore(
        partial(scenario, stage, design),
        invariant=count,
        max_preemptions=design.search.preemptions,
        crash_at=design.search.fault_at,
        faults=design.search.faults,
        allowed_errors=design.allowed_errors,
        max_schedules=MAX_SCHEDULES,
    )

    assert (explored.schedules, broken) == COUNTS[name]


@pytest.mark.parametrize("seed", range(20 if THOROUGH else 1))
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_design_is_right_whoever_comes_first(
    name: str, seed: int, explorer: Explorer, stage: Stage
) -> None:
    design = DESIGNS[name]

    def shuffled() -> Tasks:
        tasks = list(scenario(stage, design).items())
        random.Random(f"{name} {seed}").shuffle(tasks)  # noqa: S311 -- reproducible, not secret
        return dict(tasks)

    explored = explorer.explore(
        shuffled,
        invariant=partial(design.check, stage),
        max_preemptions=design.everyday_preemptions if THOROUGH else 0,
        crash_at=design.search.fault_at,
        faults=design.search.faults if THOROUGH else (),
        allowed_errors=design.allowed_errors,
        max_schedules=MAX_SCHEDULES,
    )

    assert explored.exhausted
