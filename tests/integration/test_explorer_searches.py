"""Searches find what is wrong, say it simply, and say it again."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from sqlalchemy import Engine, text

from datapatterns.errors import SearchTooLargeError
from datapatterns.testing import (
    Choice,
    DivergedError,
    Exploration,
    Explorer,
    Fault,
    InterleavingError,
    Outcome,
    Schedule,
    pause_point,
    pause_point_async,
    schedules,
)
from tests.fixtures.explorers import steps

Reset = Callable[[], None]
Free = Callable[[str], int]
Tasks = dict[str, Callable[[], object]]

LOST_UPDATE = "alice.bob*3.alice*2"
TAKING = [
    "SELECT free FROM seats WHERE seat = 'a' FOR UPDATE",
    "UPDATE seats SET free = %(n)s WHERE seat = 'a'",
    "COMMIT",
]


@pytest.fixture
def racing(explorer: Explorer, reset: Reset) -> Callable[[], Tasks]:
    """Two tasks that take a place each, one of which gets lost."""
    engine = explorer.engine()

    def take() -> None:
        with engine.begin() as conn:
            left = conn.scalar(text("SELECT free FROM seats WHERE seat = 'a'"))
            conn.execute(text("UPDATE seats SET free = :n WHERE seat = 'a'"), {"n": left - 1})

    def scenario() -> Tasks:
        reset()
        return {"alice": take, "bob": take}

    return scenario


@pytest.fixture
def both_taken(free: Free) -> Callable[[Outcome], None]:
    def both_taken(_: Outcome) -> None:
        if free("a") != -1:
            raise AssertionError("a place was taken twice")

    return both_taken


@pytest.fixture
def queueing(explorer: Explorer, reset: Reset) -> Callable[[], Tasks]:
    """Two tasks that take a place each, one after the other."""
    engine = explorer.engine()

    def take() -> None:
        with engine.begin() as conn:
            left = conn.scalar(text("SELECT free FROM seats WHERE seat = 'a' FOR UPDATE"))
            conn.execute(text("UPDATE seats SET free = :n WHERE seat = 'a'"), {"n": left - 1})

    def scenario() -> Tasks:
        reset()
        return {"alice": take, "bob": take}

    return scenario


def test_the_simplest_story_is_found_first(
    explorer: Explorer, racing: Callable[[], Tasks], both_taken: Callable[[Outcome], None]
) -> None:
    with pytest.raises(InterleavingError) as caught:
        explorer.explore(racing, invariant=both_taken)

    assert caught.value.schedules == 3
    assert str(caught.value).splitlines() == [
        "a place was taken twice",
        "",
        f"     {'alice':46}  bob",
        f"     {'-' * 46}  {'-' * 46}",
        "  1  SELECT free FROM seats WHERE seat = 'a'",
        "  2  " + " " * 48 + "SELECT free FROM seats WHERE seat = 'a'",
        "  3  " + " " * 48 + "UPDATE seats SET free = %(n)s WHERE seat = 'a'",
        f"  4  {'':46}  COMMIT",
        f"     {'':46}  (done)",
        "  5  UPDATE seats SET free = %(n)s WHERE seat = 'a'",
        "  6  COMMIT",
        "     (done)",
        "",
        "found in schedule 3; replay: --datapatterns-replay=alice.bob*3.alice*2",
    ]


def test_hypothesis_draws_and_shrinks_to_the_fewest_switches(
    explorer: Explorer, racing: Callable[[], Tasks], both_taken: Callable[[Outcome], None]
) -> None:
    found = []
    for _ in range(2):
        with pytest.raises(InterleavingError) as caught:
            explorer.search(racing, invariant=both_taken)
        found.append((caught.value.token, caught.value.schedules))

    assert found[0] == found[1]
    assert found[0][0] == LOST_UPDATE


def test_a_search_that_finds_nothing_says_how_many_schedules_it_has_run(
    explorer: Explorer, queueing: Callable[[], Tasks], both_taken: Callable[[Outcome], None]
) -> None:
    runs = [
        explorer.search(queueing, invariant=both_taken, examples=15, seed=seed)
        for seed in (None, None, 1)
    ]

    assert runs[0].schedules == runs[1].schedules
    assert 5 < runs[2].schedules <= 16
    assert not runs[0].exhausted
    assert runs[0].schedules_per_second > 0
    assert runs[0].blocked_steps == runs[1].blocked_steps > 0


def test_a_search_draws_faults_too(
    explorer: Explorer, queueing: Callable[[], Tasks], free: Free
) -> None:
    with pytest.raises(InterleavingError) as caught:
        explorer.search(
            queueing,
            invariant=lambda _: free("a") == -1,
            crash_at=lambda gate: gate.label == "COMMIT",
            faults=[Fault.CRASH],
        )

    assert steps(caught.value.outcome) == [*TAKING, *TAKING]
    assert caught.value.outcome.crashed == {"alice"}


def test_schedules_are_a_strategy_for_tests_of_your_own(
    explorer: Explorer, racing: Callable[[], Tasks], both_taken: Callable[[Outcome], None]
) -> None:
    @settings(
        max_examples=60,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules(steps=6))
    def check(schedule: Schedule) -> None:
        explorer.check(schedule, racing, invariant=both_taken)

    with pytest.raises(InterleavingError) as caught:
        check()

    assert caught.value.token == LOST_UPDATE
    assert "schedule=Schedule({1: 1})" in "".join(caught.value.__notes__)


def test_a_bounded_search_counts_the_same_every_time(
    explorer: Explorer, queueing: Callable[[], Tasks], both_taken: Callable[[Outcome], None]
) -> None:
    runs = [
        explorer.explore(queueing, invariant=both_taken, max_preemptions=3, max_schedules=100)
        for _ in range(2)
    ]

    assert {(run.schedules, run.blocked_steps, run.exhausted) for run in runs} == {(6, 4, True)}


def test_no_limit_is_silent(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = explorer.redis()

    def scenario() -> Tasks:
        return {name: lambda: [client.get("x") for _ in range(3)] for name in ("alice", "bob")}

    limited = explorer.explore(
        scenario, invariant=lambda _: True, max_preemptions=3, max_schedules=5
    )
    monkeypatch.setattr("datapatterns.testing.interleaving.explorer.SCHEDULES_MAX", 5)
    with pytest.raises(SearchTooLargeError, match="after 5 schedules at least") as caught:
        explorer.explore(scenario, invariant=lambda _: True, max_preemptions=3)

    assert (limited.schedules, limited.exhausted) == (5, False)
    assert caught.value.known > 0


def failing_tokens(
    explorer: Explorer, scenario: Callable[[], Tasks], invariant: Callable[[Outcome], None]
) -> dict[str, str]:
    stories = {}

    def note(outcome: Outcome) -> None:
        try:
            invariant(outcome)
        except AssertionError:
            stories[outcome.token] = str(outcome.story)

    explorer.explore(scenario, invariant=note, max_preemptions=2)
    return stories


def busy_loops(stop: threading.Event) -> list[threading.Thread]:
    def loop() -> None:
        while not stop.is_set():
            sum(range(1_000))

    loops = [threading.Thread(target=loop) for _ in range(2)]
    for each in loops:
        each.start()
    return loops


@pytest.mark.parametrize("load", ["quiet", "busy"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_four_failing_schedules_replay_to_the_same_stories_twenty_times(
    explorer: Explorer,
    racing: Callable[[], Tasks],
    reset: Reset,
    both_taken: Callable[[Outcome], None],
    kind: str,
    load: str,
) -> None:
    async_engine = explorer.async_engine()

    async def take() -> None:
        async with async_engine.begin() as conn:
            left = await conn.scalar(text("SELECT free FROM seats WHERE seat = 'a'"))
            await conn.execute(text("UPDATE seats SET free = :n WHERE seat = 'a'"), {"n": left - 1})

    def async_racing() -> Tasks:
        reset()
        return {"alice": take, "bob": take}

    scenario = racing if kind == "sync" else async_racing
    stories = failing_tokens(explorer, scenario, both_taken)
    stop = threading.Event()
    loops = busy_loops(stop) if load == "busy" else []
    try:
        told = [
            (token, _story_of(explorer, token, scenario, both_taken))
            for token in list(stories)[:4]
            for _ in range(20 if load == "quiet" else 3)
        ]
    finally:
        stop.set()
        for each in loops:
            each.join()

    assert len(stories) >= 4
    assert set(told) == set(list(stories.items())[:4])


def _story_of(
    explorer: Explorer,
    token: str,
    scenario: Callable[[], Tasks],
    invariant: Callable[[Outcome], None],
) -> str:
    with pytest.raises(InterleavingError) as caught:
        explorer.replay(token, scenario, invariant=invariant)
    return str(caught.value.story)


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("alice.bob.carol", "step 3: 'carol' is not ready, only 'alice', 'bob'"),
        ("alice.bob", "step 3: the schedule has ended, and 'alice', 'bob' could go on"),
    ],
)
def test_a_token_that_does_not_fit_is_told_with_the_story_so_far(
    explorer: Explorer, racing: Callable[[], Tasks], token: str, told: str
) -> None:
    with pytest.raises(DivergedError) as caught:
        explorer.replay(token, racing, invariant=lambda _: True)

    assert str(caught.value).startswith(told)
    assert str(caught.value).endswith("--datapatterns-replay=alice.bob")
    assert len(caught.value.story.lines) == 2


def test_what_a_test_run_overrides_reaches_every_search(
    plain: Engine, both_taken: Callable[[Outcome], None], reset: Reset
) -> None:
    reported: list[Exploration] = []

    def run(
        search: str,
        invariant: Callable[[Outcome], object] = both_taken,
        **overrides: Any,  # noqa: ANN401 -- of several kinds
    ) -> None:
        with Explorer(plain.url, report=reported.append, **overrides) as explorer:
            engine = explorer.engine()

            def take() -> None:
                with engine.begin() as conn:
                    left = conn.scalar(text("SELECT free FROM seats WHERE seat = 'a'"))
                    conn.execute(
                        text("UPDATE seats SET free = :n WHERE seat = 'a'"), {"n": left - 1}
                    )

            def scenario() -> Tasks:
                reset()
                return {"alice": take, "bob": take}

            getattr(explorer, search)(scenario, invariant=invariant)

    run("explore", preemptions=0)
    for search in ("explore", "search"):
        run(search, replay="carol*3")
        with pytest.raises(InterleavingError):
            run(search, replay=LOST_UPDATE)
    run("search", lambda _: True, examples=3)

    assert [each.schedules for each in reported] == [2, 0, 1, 0, 1, 4]


def test_whoever_sleeps_lets_others_go_first_and_time_passes_for_nobody_else(
    explorer: Explorer, reset: Reset, free: Free
) -> None:
    engine, async_engine, clock = explorer.engine(), explorer.async_engine(), explorer.clock

    def poll() -> float:
        while True:
            with engine.connect() as conn:
                if conn.scalar(text("SELECT free FROM seats WHERE seat = 'a'")) == 0:
                    return clock.monotonic()
            clock.sleep(60)

    async def nap() -> float:
        await clock.sleep_async(180)
        async with async_engine.begin() as conn:
            await conn.execute(text("UPDATE seats SET free = 0 WHERE seat = 'a'"))
        return clock.monotonic()

    def scenario() -> Tasks:
        reset()
        return {"poller": poll, "napper": nap}

    outcome = explorer.run(scenario, Schedule())
    found = explorer.explore(scenario, invariant=lambda _: free("a") == 0, max_preemptions=1)

    # Both wake at 180, and the poller looks before the napper has written anything.
    assert outcome.results == {"poller": 240.0, "napper": 180.0}
    assert steps(outcome).count("sleep 60 s") == 4
    assert found.exhausted
    assert clock.monotonic() >= 180
    assert clock.now().tzinfo is not None


def test_races_within_a_process_are_found_at_pause_points(explorer: Explorer) -> None:
    async_engine = explorer.async_engine()

    def scenario() -> Tasks:
        left = [1, 1]

        def take() -> bool:
            found = left[0]
            pause_point("place seen")
            left[0] = found - 1
            return found > 0

        async def take_async() -> bool:
            found = left[1]
            await pause_point_async("place seen")
            left[1] = found - 1
            return found > 0

        async def take_in_greenlet() -> bool:
            async with async_engine.connect() as conn:
                return await conn.run_sync(lambda _: take())

        return {
            "alice": take,
            "bob": take_in_greenlet,
            "carol": take_async,
            "dave": take_async,
        }

    with pytest.raises(InterleavingError, match="in_turn is false") as caught:
        explorer.explore(scenario, invariant=in_turn, max_preemptions=2)

    assert set(steps(caught.value.outcome)) == {"place seen"}
    pause_point("outside a task, nothing happens")
    asyncio.run(pause_point_async("outside a task, nothing happens"))


def in_turn(outcome: Outcome) -> bool:
    return list(outcome.results.values()).count(True) == 2


def test_a_pause_point_that_would_stop_the_event_loop_is_refused(explorer: Explorer) -> None:
    async def task() -> None:
        pause_point("here")

    outcome = explorer.run(lambda: {"task": task}, Schedule())

    assert "would block the event loop" in str(outcome.errors["task"])


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_start_gates_schedule_what_comes_before_the_first_round_trip(
    plain: Engine, kind: str
) -> None:
    seen: list[str] = []

    def tell(name: str) -> Callable[[], object]:
        async def told() -> None:
            seen.append(name)

        return told if kind == "async" else lambda: seen.append(name)

    def scenario() -> Tasks:
        seen.clear()
        return {"alice": tell("alice"), "bob": tell("bob")}

    orders = set()
    for start_gate in (False, True):
        with Explorer(plain.url, start_gate=start_gate) as explorer:
            explorer.explore(scenario, invariant=lambda _: orders.add(tuple(seen)))
        assert len(orders) == 1 + start_gate


def test_a_chooser_may_be_any_function(
    explorer: Explorer, racing: Callable[[], Tasks], both_taken: Callable[[Outcome], None]
) -> None:
    outcome = explorer.run(racing, lambda ready: Choice(ready[-1].task))
    explorer.check(lambda ready: Choice(ready[0].task), racing, invariant=both_taken)

    assert set(steps(outcome, "bob")) == set(steps(outcome, "alice"))
    assert [line.task for line in outcome.story.lines][:3] == ["bob"] * 3


def test_a_name_that_no_token_can_hold_is_refused(explorer: Explorer) -> None:
    with pytest.raises(ValueError, match="not usable in a replay token"):
        explorer.run(lambda: {"al.ice": lambda: None}, Schedule())


def test_an_unexpected_error_of_a_task_is_a_finding_unless_it_is_allowed(
    explorer: Explorer,
) -> None:
    def task() -> None:
        raise KeyError("seat")

    with pytest.raises(InterleavingError, match="task raised KeyError: 'seat'"):
        explorer.explore(lambda: {"task": task}, invariant=lambda _: True)
    assert explorer.explore(
        lambda: {"task": task}, invariant=lambda _: True, allowed_errors=(KeyError,)
    ).exhausted


def test_a_search_that_would_explore_nothing_or_an_unknown_fault_is_refused(
    explorer: Explorer,
) -> None:
    def explore(**bounds: Any) -> None:  # noqa: ANN401 -- of several kinds
        explorer.explore(lambda: {"task": lambda: None}, invariant=lambda _: True, **bounds)

    for limit in (0, -1):
        with pytest.raises(ValueError, match="would explore nothing"):
            explore(max_schedules=limit)
    with pytest.raises(ValueError, match="boom"):
        explore(crash_at=lambda _: True, faults=["boom"])


def test_a_token_that_goes_on_after_the_tasks_have_ended_is_refused(
    explorer: Explorer, racing: Callable[[], Tasks]
) -> None:
    with pytest.raises(DivergedError, match="all tasks have ended, and 2 steps"):
        explorer.replay("alice*3.bob*5", racing, invariant=lambda _: True)


def test_what_never_runs_is_a_finding(explorer: Explorer) -> None:
    def generator() -> Iterator[int]:
        yield 1

    def nested() -> None:
        explorer.run(dict, Schedule())

    for task, told in ((generator, "never ran"), (nested, "runs a schedule already")):
        with pytest.raises(InterleavingError, match=told):
            explorer.explore({"task": task}.copy, invariant=lambda _: True)


def test_an_assertion_of_a_task_that_a_fault_befalls_is_a_finding(explorer: Explorer) -> None:
    client: Any = explorer.redis(retry=None)

    def task() -> None:
        try:
            client.incr("x")
        except Exception as error:
            raise AssertionError("told") from error

    with pytest.raises(InterleavingError, match="AssertionError: told") as caught:
        explorer.explore(lambda: {"task": task}, invariant=lambda _: True, crash_at=lambda _: True)
    assert isinstance(caught.value.__cause__, AssertionError)
