"""When a refresh is due, and in which order views are refreshed."""

from datetime import UTC, datetime, time, timedelta
from math import inf
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.errors import ViewCycleError
from datapatterns.materialized_view import Daily, Every, RefreshPolicy
from datapatterns.materialized_view.dependencies import companies, in_order, with_ancestors
from datapatterns.materialized_view.pacing import Rests, pause_seconds, rest_seconds

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def left(policy: RefreshPolicy, age: float, duration: float = 0) -> float:
    return policy.seconds_left(NOON, NOON + timedelta(seconds=age), as_of=NOON, duration=duration)


def test_a_view_without_a_policy_is_refreshed_on_demand_only() -> None:
    policy = RefreshPolicy()

    assert policy.on_demand
    assert left(policy, 1e6) == inf
    assert str(policy) == "on demand"


def test_a_schedule_counts_from_the_last_refresh() -> None:
    policy = RefreshPolicy(schedule=Every(60))

    assert left(policy, 10) == 50
    assert left(policy, 61) == -1
    assert str(policy) == "every 60 s"


@given(allowed=st.floats(0.1, 1e6), duration=st.floats(0, 1e5), look=st.floats(0, 1))
def test_no_change_is_missing_for_longer_than_is_allowed(
    allowed: float, duration: float, look: float
) -> None:
    rest = left(RefreshPolicy(max_staleness_seconds=allowed), 0, duration)
    late = look * min(0.1 * allowed, 1)  # whoever looks comes so much later

    # From the last refresh's look at the tables to the commit of the next.
    missing = duration + rest + late + duration

    if 2 * duration < 0.9 * allowed:
        assert missing <= allowed * (1 + 1e-9)
    assert rest > 0


def test_a_view_is_as_stale_as_what_it_is_built_upon() -> None:
    earlier = NOON - timedelta(seconds=7)
    stale = RefreshPolicy(max_staleness_seconds=10)
    planned = RefreshPolicy(schedule=Every(10))

    assert stale.seconds_left(NOON, NOON, as_of=earlier, duration=0) == 2
    assert planned.seconds_left(NOON, NOON, as_of=earlier, duration=0) == 10


def test_the_sooner_of_two_reasons_counts() -> None:
    policy = RefreshPolicy(max_staleness_seconds=10, schedule=Every(60))

    assert left(policy, 0) == 9
    assert str(policy) == "at most 10 s stale, every 60 s"


def test_a_daily_refresh_is_due_once_a_day() -> None:
    daily = Daily(time(3, 30))

    assert daily.next_after(NOON) == datetime(2026, 3, 2, 3, 30, tzinfo=UTC)
    assert daily.next_after(datetime(2026, 3, 2, 3, 29, tzinfo=UTC)) == daily.next_after(NOON)
    assert str(daily) == "daily at 03:30 UTC"


@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_a_time_in_a_zone_follows_its_clock_through_the_year(refreshed_at: datetime) -> None:
    due = Daily(time(2, 30, tzinfo=BERLIN)).next_after(refreshed_at)

    wait = due.astimezone(UTC) - refreshed_at
    assert timedelta(0) < wait <= timedelta(hours=25)
    assert (due.hour, due.minute) == (2, 30)


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan")])
def test_times_that_cannot_be_kept_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        RefreshPolicy(max_staleness_seconds=seconds)
    with pytest.raises(ValueError, match="seconds"):
        RefreshPolicy(timeout_seconds=seconds)
    with pytest.raises(ValueError, match="seconds"):
        Every(seconds)


def test_views_come_after_those_that_they_are_built_upon_else_as_declared() -> None:
    parents = {"z": [], "top": ["left", "right"], "right": ["z"], "left": ["z", "unknown"], "a": []}

    assert in_order(parents) == ["z", "left", "right", "top", "a"]
    assert with_ancestors(["left"], parents) == {"left", "z", "unknown"}


def test_a_circle_is_named() -> None:
    with pytest.raises(ViewCycleError, match="circle: ") as raised:
        in_order({"a": ["c"], "b": ["a"], "c": ["b"], "d": []})

    first, *others, last = raised.value.views
    assert (first, {first, *others}) == (last, {"a", "b", "c"})


def test_parents_of_one_view_are_refreshed_in_one_snapshot() -> None:
    diamond = {"base": [], "l": ["base"], "r": ["base"], "top": ["l", "r"], "other": []}

    assert companies(diamond) == [("base",), ("other",), ("l", "r"), ("top",)]


def test_a_parent_that_is_built_upon_another_stays_apart() -> None:
    assert companies({"a": [], "b": ["a"], "c": ["a", "b"]}) == [("a",), ("b",), ("c",)]


def test_companies_that_share_a_member_are_one() -> None:
    shared = {"a": [], "b": [], "c": [], "ab": ["a", "b"], "bc": ["b", "c"]}

    assert companies(shared) == [("a", "b", "c"), ("ab",), ("bc",)]


graphs = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        *(st.sets(st.integers(0, max(i - 1, 0))) if i else st.just(set[int]()) for i in range(n))
    )
)


@given(graphs)
def test_each_view_is_in_one_company_after_all_its_parents(graph: tuple[set[int], ...]) -> None:
    parents = {str(n): [str(p) for p in sorted(on)] for n, on in enumerate(graph)}

    found = companies(parents)

    order = [name for company in found for name in company]
    place = {name: n for n, company in enumerate(found) for name in company}
    assert sorted(order) == sorted(parents)
    for name, on in parents.items():
        for parent in on:
            assert place[parent] < place[name]


def test_a_view_that_fails_rests_longer_each_time_until_it_works() -> None:
    rests = Rests()

    first = rests.begin("a", now=0, draw=1)
    second = rests.begin("a", now=first, draw=1)

    assert (first, second) == (0.25, 0.5)
    assert rests.seconds_left("a", now=first) == 0.5
    assert rests.seconds_left("b", now=0) == 0
    rests.end("a")
    assert rests.begin("a", now=0, draw=0) == 0.125


@given(st.integers(1, 100), st.floats(0, 1))
def test_rests_and_pauses_are_bounded(failures: int, draw: float) -> None:
    assert 0.125 <= rest_seconds(failures, draw) <= 60
    assert 0.02 <= pause_seconds(inf, draw) <= 5
    assert pause_seconds(-1, draw) == 0.02
