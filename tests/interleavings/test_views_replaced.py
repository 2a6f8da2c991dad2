"""A view's next version takes its place beside writers, readers, old code and other migrations."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Connection, Engine, Table, func, select, text

from datapatterns.errors import ViewChangedError, ViewMissingError
from datapatterns.materialized_view import MaterializedView, switching
from datapatterns.materialized_view.replacing import replace_view
from datapatterns.testing.interleaving import Explorer, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most
from tests.fixtures.view_tables import (
    AnySelect,
    Line,
    create,
    create_tables,
    differences,
    run,
)
from tests.interleavings.designs.design import Tasks
from tests.interleavings.guards import statements_without

pytestmark = pytest.mark.postgres

PREEMPTIONS = 2 if THOROUGH else 1


def lines() -> AnySelect:
    return select(Line.week, func.count().label("lines")).group_by(Line.week)


def cents() -> AnySelect:
    return lines().add_columns(func.sum(Line.cents).label("cents"))


def largest() -> AnySelect:
    return lines().add_columns(func.max(Line.cents).label("largest"))


OLD = MaterializedView("replaced", lines())
NEXT = MaterializedView("replaced", cents())
THIRD = MaterializedView("replaced", largest())
QUERIES = {NEXT: cents(), THIRD: largest()}
LINE = text("INSERT INTO line VALUES (:id, 1, 1, 10, 1)")
LINES_SHOWN = select(func.coalesce(func.sum(OLD.c.lines), 0))
LEFT = text("SELECT name FROM datapatterns.materialized_view")


@pytest.fixture(scope="module", autouse=True)
def _tables(plain: Engine) -> Iterator[None]:
    with plain.begin() as conn:
        create_tables(conn)
    yield
    drop(plain)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever is held at a gate keeps its locks for as long as the machine likes.
    monkeypatch.setattr(switching, "LOCK_MILLISECONDS", 60_000)


def drop(engine: Engine) -> None:
    with engine.begin() as conn:
        OLD.drop(conn)


def migrate(engine: Engine, view: MaterializedView) -> None:
    definition = view.definition
    with engine.begin() as conn:
        replace_view(conn, definition.names, definition.blueprint(definition.candidates[0]))


def refresh(engine: Engine, view: MaterializedView) -> None:
    with engine.begin() as conn:
        view.refresh(conn)


def begin(plain: Engine) -> None:
    """Begin a schedule: the next version is populated; of two lines, nobody shows one yet."""
    drop(plain)
    run(plain, "DELETE FROM line", "INSERT INTO line VALUES (1, 1, 1, 10, 1)")
    create(plain, OLD)
    migrate(plain, NEXT)
    refresh(plain, NEXT)
    run(plain, "INSERT INTO line VALUES (2, 1, 1, 10, 1)")


def sell(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(LINE, {"id": 3})
        conn.execute(LINE, {"id": 4})


def look(engine: Engine) -> int:
    with engine.begin() as conn:
        return int(conn.scalar(LINES_SHOWN) or 0)


def look_twice(engine: Engine) -> list[int]:
    return [look(engine), look(engine)]


def work_as_before(engine: Engine) -> int:
    """Sell, refresh the old version while that is there, and look."""
    sell(engine)
    with suppress(ViewChangedError, ViewMissingError):
        refresh(engine, OLD)
    return look(engine)


def becomes(plain: Engine, *views: MaterializedView) -> Callable[[Outcome], None]:
    """Return a check that the view can be made the last of ``views``, and nothing else is left."""

    def check(_outcome: Outcome) -> None:
        view = views[-1]
        if len(views) > 1:
            migrate(plain, view)
        for _ in range(2):
            refresh(plain, view)
        wrong = differences(plain, view, QUERIES[view])
        assert not wrong, f"the view and its query differ in {wrong} rows"
        with plain.connect() as conn:
            assert [*conn.scalars(LEFT)] == ["replaced"]

    return check


def no_step_back(plain: Engine) -> Callable[[Outcome], None]:
    """Return a check that the view never shows less than somebody has seen in it."""

    def check(outcome: Outcome) -> None:
        seen, now = outcome.results["old"], look(plain)
        assert seen <= now, f"{seen} lines were shown, and then {now}"

    return check


def test_readers_see_whole_transactions_and_never_less_than_before(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    def meet() -> Tasks:
        begin(plain)
        return {
            "writer": partial(sell, gated),
            "switcher": partial(refresh, gated, NEXT),
            "reader": partial(look_twice, gated),
        }

    def check(outcome: Outcome) -> None:
        first, second = outcome.results["reader"]
        assert {first, second} <= {1, 2, 4}, f"no transaction left {first} or {second} lines"
        assert first <= second, f"{first} lines, then only {second}"
        becomes(plain, NEXT)(outcome)

    explored = explorer.explore(
        meet, invariant=check, max_preemptions=PREEMPTIONS, max_schedules=at_most(12)
    )

    assert explored.schedules > 10


def beside_old_code(gated: Engine, plain: Engine) -> Tasks:
    begin(plain)
    return {"switcher": partial(refresh, gated, NEXT), "old": partial(work_as_before, gated)}


def test_what_old_code_has_brought_up_to_date_is_not_taken_back(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    explored = explorer.explore(
        partial(beside_old_code, gated, plain),
        invariant=no_step_back(plain),
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(12),
    )

    assert explored.schedules > 10


def test_a_switch_that_lets_others_refresh_meanwhile_takes_the_view_back(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    with (
        statements_without(gated, "SHARE ROW EXCLUSIVE", instead="ROW EXCLUSIVE"),
        pytest.raises(InterleavingError, match="lines were shown, and then"),
    ):
        explorer.explore(
            partial(beside_old_code, gated, plain),
            invariant=no_step_back(plain),
            max_preemptions=1,
        )


def two_switchers(gated: Engine, plain: Engine) -> Tasks:
    begin(plain)
    return {"one": partial(refresh, gated, NEXT), "two": partial(refresh, gated, NEXT)}


def test_two_switchers_do_as_one_after_the_other(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    explored = explorer.explore(
        partial(two_switchers, gated, plain),
        invariant=becomes(plain, NEXT),
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(12),
    )

    assert explored.schedules > 10


def test_two_switchers_that_do_not_hold_the_versions_get_into_each_others_way(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    with (
        statements_without(gated, "pg_advisory_xact_lock(", instead="hashint8("),
        pytest.raises(InterleavingError, match="ViewMissingError"),
    ):
        explorer.explore(partial(two_switchers, gated, plain), invariant=becomes(plain, NEXT))


def test_a_migration_beside_the_switch_of_another_loses_nothing(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    def meet() -> Tasks:
        begin(plain)
        return {
            "migration": partial(migrate, gated, THIRD),
            "writer": partial(sell, gated),
            "switcher": partial(refresh, gated, NEXT),
        }

    explored = explorer.explore(
        meet,
        invariant=becomes(plain, NEXT, THIRD),
        allowed_errors=(ViewChangedError,),
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(6),
    )

    assert explored.schedules > 5


def test_a_switch_that_does_not_take_the_snapshot_along_loses_changes(
    explorer: Explorer, gated: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = switching._copy  # noqa: SLF001 -- the guard

    def copy_and_forget(
        conn: Connection, table: Table, which: ColumnElement[bool], changes: dict[str, Any]
    ) -> None:
        copy(conn, table, which, changes)
        if table.name == "change_consumer":
            conn.execute(
                text("UPDATE datapatterns.change_consumer SET snapshot = pg_current_snapshot()")
            )

    def meet() -> Tasks:
        begin(plain)
        return {"switcher": partial(refresh, gated, NEXT), "writer": partial(sell, gated)}

    monkeypatch.setattr(switching, "_copy", copy_and_forget)
    with pytest.raises(InterleavingError, match="the view and its query differ"):
        explorer.explore(meet, invariant=becomes(plain, NEXT), max_preemptions=1)
