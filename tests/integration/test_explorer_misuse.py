"""What users get wrong is told, and costs neither sessions nor verdicts."""

# ruff: noqa: ANN401 -- wrong on purpose

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, text

from datapatterns.testing import (
    Choice,
    Explorer,
    InterleavingError,
    Outcome,
    Schedule,
    StuckError,
)
from datapatterns_pytest.explored import Explored
from tests.fixtures.explorers import SESSIONS

pytestmark = pytest.mark.usefixtures("reset")


def holds(_: Outcome) -> None:
    """Hold always."""


def asking(explorer: Explorer, *statements: str) -> Callable[[], None]:
    engine = explorer.engine()

    def ask() -> None:
        with engine.begin() as conn:
            for statement in statements:
                conn.execute(text(statement))

    return ask


@pytest.mark.parametrize("made", [None, [], {"a": None}, {"a": 1}, {1: print}])
def test_a_scenario_that_returns_no_functions_by_name_is_refused(
    explorer: Explorer, made: Any
) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"returns its tasks|is no function|name 1 is"
    ):
        explorer.explore(lambda: made, invariant=holds)


@pytest.mark.parametrize("allowed", [ZeroDivisionError, [ZeroDivisionError], {ZeroDivisionError}])
def test_allowed_errors_are_one_kind_or_several(explorer: Explorer, allowed: Any) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    explored = explorer.explore(lambda: {"a": fail}, invariant=holds, allowed_errors=allowed)

    assert explored.exhausted
    with pytest.raises(InterleavingError, match="a raised ZeroDivisionError"):
        explorer.explore(lambda: {"a": fail}, invariant=holds, allowed_errors=[KeyError])


@pytest.mark.parametrize("kind", [KeyError, pytest.fail.Exception])
@pytest.mark.parametrize("way", ["explore", "search"])
def test_an_invariant_that_raises_something_else_is_told_with_the_story(
    explorer: Explorer, kind: type[BaseException], way: str
) -> None:
    ask = asking(explorer, "SELECT 1")

    def look(_: Outcome) -> None:
        raise kind("carol")

    with pytest.raises(kind, match="carol") as caught:
        getattr(explorer, way)(lambda: {"alice": ask}, invariant=look)

    notes = "\n".join(caught.value.__notes__)
    assert "SELECT 1" in notes
    assert "--datapatterns-replay=alice*2" in notes


def test_a_chooser_that_takes_nobody_who_is_there_is_refused(explorer: Explorer) -> None:
    ask = asking(explorer, "SELECT 1")

    with pytest.raises(ValueError, match="'zoe', which is none of"):
        explorer.run(lambda: {"alice": ask}, lambda _: Choice("zoe"))


def test_tasks_that_pass_no_gate_are_counted_as_such(explorer: Explorer, plain: Engine) -> None:
    def without_explorer() -> None:
        with plain.begin() as conn:
            conn.execute(text("SELECT 1"))

    explored = explorer.explore(
        lambda: {"alice": without_explorer, "bob": without_explorer}, invariant=holds
    )
    ask = asking(explorer, "SELECT 1")
    gated = explorer.explore(lambda: {"alice": ask, "bob": ask}, invariant=holds)
    run = Explored()
    run.report(explored)
    run.report(gated)

    assert (explored.schedules, explored.steps) == (1, 0)
    assert gated.steps == 4 * gated.schedules
    assert "2 explorations" in str(run)
    assert "1 passed no gate" in str(run)


@pytest.mark.parametrize("where", ["scenario", "task"])
def test_what_each_schedule_makes_anew_is_closed(
    explorer: Explorer, plain: Engine, redis_url: str, where: str
) -> None:
    def use() -> None:
        asking(explorer, "SELECT 1")()
        explorer.redis().get("x")

    def scenario() -> dict[str, Callable[[], object]]:
        if where == "task":
            return {"alice": use, "bob": use}
        client, connection = explorer.redis(), explorer.connect()
        return {"alice": asking(explorer, "SELECT 1"), "bob": lambda: client.get("x")} | {
            "carol": lambda: connection.execute("SELECT 1")
        }

    with Redis.from_url(redis_url) as client:
        before = len(client.client_list())  # other tests of this process may have left some

    explored = explorer.explore(scenario, invariant=holds, max_preemptions=1, max_schedules=12)

    with plain.connect() as conn, Redis.from_url(redis_url) as client:
        sessions, clients = conn.execute(SESSIONS).all(), client.client_list()
    assert explored.schedules > 5
    assert len(sessions) <= 5
    assert len(clients) - before < 5


def test_an_engine_that_a_coroutine_makes_is_refused_and_nothing_hangs(explorer: Explorer) -> None:
    async def task() -> None:
        explorer.async_engine()

    with pytest.raises(InterleavingError, match="would block the explorer's event loop"):
        explorer.explore(lambda: {"alice": task}, invariant=holds)


@pytest.mark.parametrize(
    "statement",
    [
        "/* as of now */ SET search_path TO nowhere",
        "-- as of now\nSET search_path TO nowhere",
        "SELECT 1; SET search_path TO nowhere",
        f"SELECT '{'long' * 60}', set_config('search_path', 'nowhere', false)",
        "CREATE OR REPLACE TEMPORARY VIEW seats AS SELECT 1",
    ],
)
def test_traces_are_seen_wherever_they_stand_in_a_statement(
    explorer: Explorer, statement: str
) -> None:
    engine = explorer.engine(pool_size=1)

    def task() -> None:
        with engine.begin() as conn:
            assert conn.exec_driver_sql("SELECT count(seat) FROM seats").scalar() == 2
            conn.exec_driver_sql(statement)

    for _ in range(2):
        explorer.check(Schedule(), lambda: {"alice": task}, invariant=holds)


def test_a_client_may_have_a_single_connection(explorer: Explorer) -> None:
    client = explorer.redis(single_connection_client=True)

    assert explorer.explore(lambda: {"alice": lambda: client.get("x")}, invariant=holds).steps == 1


def test_who_waits_in_redis_for_what_nobody_sends_is_told_so(plain: Engine, redis_url: str) -> None:
    with Explorer(plain.url, redis_url, stuck_after_seconds=0.5) as explorer:
        client = explorer.redis()

        with pytest.raises(StuckError, match="in Redis or in this process, for what nobody sends"):
            explorer.explore(lambda: {"alice": lambda: client.blpop(["none"])}, invariant=holds)
