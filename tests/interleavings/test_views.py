"""Materialized views and the change log: writers, refreshers, truncation, capture and garbage."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select, text

from datapatterns.change_log import ChangeLog, Snapshot, current_snapshot
from datapatterns.change_log.consuming import advance_consumer
from datapatterns.materialized_view import MaterializedView, refreshing
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most, torture
from tests.fixtures.view_tables import (
    create,
    create_tables,
    differences,
    largest_lines,
    run,
    weekly_sales,
)
from tests.interleavings.designs.design import Tasks, is_commit
from tests.interleavings.guards import statements_without

pytestmark = pytest.mark.postgres

PREEMPTIONS = 2 if THOROUGH else 1
WEEKLY = MaterializedView("weekly_sales", weekly_sales())
LARGEST = MaterializedView("largest_lines", largest_lines())
LATE = MaterializedView("late_sales", weekly_sales())
QUERIES = {WEEKLY.name: weekly_sales, LARGEST.name: largest_lines, LATE.name: weekly_sales}
LOG = ChangeLog()
LINE = text("INSERT INTO line VALUES (:id, 1, 1, :cents, 1)")
LINES_SHOWN = select(WEEKLY.c.lines)


@pytest.fixture(scope="module", autouse=True)
def _views(plain: Engine) -> None:
    with plain.begin() as conn:
        create_tables(conn)
    create(plain, WEEKLY, LARGEST)


@pytest.fixture(autouse=True)
def _whole_views(plain: Engine) -> None:
    """Mend what a test without a guard has left."""
    for view in (WEEKLY, LARGEST):
        with plain.begin() as conn:
            view.rebuild(conn)


def begin(plain: Engine, *views: MaterializedView) -> None:
    """Begin a schedule: one of two lines is not shown by the views yet."""
    run(
        plain,
        "DELETE FROM line",
        "DELETE FROM product",
        "INSERT INTO product VALUES (1, 'dairy'), (2, NULL)",
        "INSERT INTO line VALUES (1, 1, 1, 100, 1)",
    )
    for view in views or (WEEKLY,):
        refresh(plain, view)
    run(plain, "INSERT INTO line VALUES (2, 1, 1, 50, 1)")


def sell(engine: Engine) -> None:
    """Sell two lines and change another, in one transaction."""
    with engine.begin() as conn:
        conn.execute(LINE, {"id": 3, "cents": 10})
        conn.execute(LINE, {"id": 4, "cents": 500})
        conn.execute(text("UPDATE line SET product_id = 2 WHERE id = 1"))


def sell_another(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(LINE, {"id": 5, "cents": 20})


def truncate(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("TRUNCATE line"))


def refresh(engine: Engine, view: MaterializedView) -> None:
    with engine.begin() as conn:
        view.refresh(conn)


def collect(engine: Engine) -> None:
    with engine.begin() as conn:
        LOG.collect_garbage(conn)


def look(engine: Engine) -> list[int]:
    """Return how many lines the view of week 1 shows, twice."""
    shown = []
    for _ in range(2):
        with engine.begin() as conn:
            shown.append(sum(conn.scalars(LINES_SHOWN)))
    return shown


def equals_its_query(plain: Engine, *views: MaterializedView) -> Callable[[Outcome], None]:
    def check(_outcome: Outcome) -> None:
        for view in views:
            refresh(plain, view)
            wrong = differences(plain, view, QUERIES[view.name]())
            assert not wrong, f"{view.name} and its query differ in {wrong} rows"

    return check


@pytest.mark.parametrize("view", [WEEKLY, LARGEST], ids=lambda view: view.name)
def test_a_view_that_is_refreshed_beside_a_writer_equals_its_query(
    view: MaterializedView, explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    def meet() -> Tasks:
        begin(plain, view)
        return {"writer": partial(sell, gated), "refresher": partial(refresh, gated, view)}

    explored = explorer.explore(
        meet,
        invariant=equals_its_query(plain, view),
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(20),
    )

    assert explored.schedules > 10


def test_a_reader_sees_all_of_a_transaction_or_nothing_and_never_less_than_before(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    def meet() -> Tasks:
        begin(plain)
        return {
            "writer": partial(sell, gated),
            "refresher": partial(refresh, gated, WEEKLY),
            "reader": partial(look, gated),
        }

    def states_are_whole(outcome: Outcome) -> None:
        first, second = outcome.results["reader"]
        assert {first, second} <= {1, 2, 4}, f"no transaction left {first} or {second} lines"
        assert first <= second, f"{first} lines, then only {second}"

    explored = explorer.explore(
        meet,
        invariant=states_are_whole,
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(12),
    )

    assert explored.schedules > 10


def two_refreshers(gated: Engine, plain: Engine) -> Tasks:
    begin(plain)
    return {"one": partial(refresh, gated, WEEKLY), "two": partial(refresh, gated, WEEKLY)}


def test_two_refreshers_do_as_one_after_the_other(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    explored = explorer.explore(
        lambda: {**two_refreshers(gated, plain), "writer": partial(sell, gated)},
        invariant=equals_its_query(plain, WEEKLY),
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(20),
    )

    assert explored.schedules > 10


def test_two_refreshers_that_do_not_lock_their_consumer_apply_changes_twice(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    with (
        statements_without(gated, " FOR UPDATE"),
        pytest.raises(InterleavingError, match="weekly_sales and its query differ"),
    ):
        explorer.explore(
            partial(two_refreshers, gated, plain), invariant=equals_its_query(plain, WEEKLY)
        )


def test_a_consumer_that_advances_to_a_later_snapshot_loses_changes(
    explorer: Explorer, gated: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance_to_now(
        conn: Connection,
        name: str,
        _read: Snapshot,
        *,
        schema: str,
        **more: Any,  # noqa: ANN401 -- passed on as it came
    ) -> bool:
        now = conn.execute(select(current_snapshot)).scalar_one()
        return advance_consumer(conn, name, now, schema=schema, **more)

    def meet() -> Tasks:
        begin(plain)
        return {"refresher": partial(refresh, gated, WEEKLY), "writer": partial(sell, gated)}

    monkeypatch.setattr(refreshing, "advance_consumer", advance_to_now)
    with pytest.raises(InterleavingError, match="weekly_sales and its query differ"):
        explorer.explore(meet, invariant=equals_its_query(plain, WEEKLY))


def test_a_consumer_that_keeps_the_highest_id_and_no_snapshot_loses_late_commits(
    explorer: Explorer, gated: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance_to_an_id(
        conn: Connection,
        name: str,
        read: Snapshot,
        *,
        schema: str,
        **more: Any,  # noqa: ANN401 -- passed on as it came
    ) -> bool:
        id_only = Snapshot(read.xmax, read.xmax)
        return advance_consumer(conn, name, id_only, schema=schema, **more)

    def meet() -> Tasks:
        begin(plain)
        return {
            "writer": partial(sell, gated),
            "other": partial(sell_another, gated),
            "refresher": partial(refresh, gated, WEEKLY),
        }

    monkeypatch.setattr(refreshing, "advance_consumer", advance_to_an_id)
    with pytest.raises(InterleavingError, match="weekly_sales and its query differ"):
        explorer.explore(meet, invariant=equals_its_query(plain, WEEKLY))


def test_a_refresher_may_die_anywhere_and_no_change_is_lost_or_applied_twice(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    def meet() -> Tasks:
        begin(plain)
        return {"refresher": partial(refresh, gated, WEEKLY)}

    explored = explorer.explore(
        meet,
        invariant=equals_its_query(plain, WEEKLY),
        crash_at=lambda gate: THOROUGH or is_commit(gate),
        faults=list(Fault),
    )

    assert explored.exhausted


def test_a_view_whose_table_is_truncated_meanwhile_equals_its_query(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    def meet() -> Tasks:
        begin(plain)
        return {
            "truncation": partial(truncate, gated),
            "writer": partial(sell, gated),
            "refresher": partial(refresh, gated, WEEKLY),
        }

    explored = explorer.explore(
        meet,
        invariant=equals_its_query(plain, WEEKLY),
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(12),
    )

    assert explored.schedules > 10


# -- garbage ---------------------------------------------------------------------------------------


def collecting(gated: Engine, plain: Engine) -> Tasks:
    begin(plain, WEEKLY, LARGEST)
    return {
        "writer": partial(sell, gated),
        "collector": partial(collect, gated),
        "refresher": partial(refresh, gated, WEEKLY),
    }


def test_no_change_is_collected_that_one_of_two_consumers_still_needs(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    explored = explorer.explore(
        partial(collecting, gated, plain),
        invariant=equals_its_query(plain, WEEKLY, LARGEST),
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(12),
    )

    assert explored.schedules > 10


def test_a_collector_that_overlooks_consumers_takes_changes_from_them(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    with (
        statements_without(
            gated, "change_subscription.log_name = ", instead="change_subscription.consumer = "
        ),
        pytest.raises(InterleavingError, match="and its query differ"),
    ):
        explorer.explore(
            partial(collecting, gated, plain), invariant=equals_its_query(plain, WEEKLY, LARGEST)
        )


# -- capture ---------------------------------------------------------------------------------------


@torture
def test_a_view_that_is_created_beside_a_writer_misses_nothing(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    def drop() -> None:
        for view in (LATE, WEEKLY, LARGEST):
            with plain.begin() as conn:
                view.drop(conn)

    def create_late() -> None:
        with gated.begin() as conn:
            LATE.create(conn)
        with gated.begin() as conn:
            LATE.populate(conn)

    def meet() -> Tasks:
        drop()
        run(plain, "DELETE FROM line", "DELETE FROM product", "INSERT INTO product VALUES (1, 'd')")
        return {"writer": partial(sell, gated), "creator": create_late}

    try:
        explored = explorer.explore(
            meet, invariant=equals_its_query(plain, LATE), max_preemptions=1
        )
    finally:
        drop()
        create(plain, WEEKLY, LARGEST)

    assert explored.blocked_steps
