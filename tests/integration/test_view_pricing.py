"""A view is rebuilt for once where following what has changed would cost more."""

import pytest
from sqlalchemy import Engine, func, select, text

from datapatterns.materialized_view import MaterializedView, Strategy
from tests.fixtures.view_tables import (
    Line,
    create,
    create_tables,
    largest_lines,
    refresh,
    run,
    verify,
    weekly_sales,
)

WEEKLY = MaterializedView("weekly_sales", weekly_sales())
LARGEST = MaterializedView("largest_lines", largest_lines())
UPDATED = text(
    "SELECT pg_stat_get_xact_tuples_updated(oid), pg_stat_get_xact_tuples_hot_updated(oid)"
    " FROM pg_class WHERE oid = 'datapatterns.weekly_stored'::regclass"
)


@pytest.fixture(autouse=True)
def shop(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
    run(engine, "INSERT INTO product VALUES (1, 'dairy'), (2, 'fruit'), (3, NULL)")


@pytest.mark.parametrize("view", [WEEKLY, LARGEST], ids=["counting", "groups"])
def test_beyond_a_share_of_the_rows_a_view_is_rebuilt(
    engine: Engine, view: MaterializedView
) -> None:
    create(engine, view)
    strategies = []
    for share, analyze in [("id % 4 > 0", False), ("id % 4 > 0", True), ("id < 100", True)]:
        run(
            engine,
            "TRUNCATE line",
            "INSERT INTO line SELECT g, g % 9, 1 + g % 4, g, 1 FROM generate_series(1, 4000) g",
            *(["ANALYZE line", "ANALYZE product"] if analyze else []),
        )
        refresh(engine, view)
        run(engine, f"UPDATE line SET cents = cents + 1 WHERE {share}")  # noqa: S608 -- ours
        with engine.begin() as conn:
            report = view.refresh(conn)
        assert report is not None
        strategies.append(report.strategy)
        assert verify(engine, view) == []

    assert strategies == [view.explain().strategy, Strategy.REBUILD, view.explain().strategy]


def test_most_groups_are_not_looked_for_one_by_one(engine: Engine) -> None:
    create(engine, LARGEST)
    run(
        engine,
        "INSERT INTO product SELECT g, g FROM generate_series(10, 109) g",
        "INSERT INTO line SELECT g, 1, g, g, 1 FROM generate_series(10, 109) g",
    )
    refresh(engine, LARGEST)
    strategies = []
    for some in ("id <= 30", "id <= 80"):
        run(engine, f"UPDATE line SET cents = cents + 1 WHERE {some}")  # noqa: S608 -- ours
        with engine.connect() as conn:
            assert LARGEST.verify(conn) == []
        with engine.begin() as conn:
            report = LARGEST.refresh(conn)
        assert report is not None
        strategies.append(report.strategy)
        assert verify(engine, LARGEST) == []

    assert strategies == [Strategy.GROUPS, Strategy.REBUILD]


def test_a_group_that_changes_finds_room_beside_itself(engine: Engine) -> None:
    """Its new version is on the same page then, and no index is told."""
    view = MaterializedView(
        "weekly", select(Line.week, func.count().label("n")).group_by(Line.week)
    )
    run(engine, "INSERT INTO line SELECT g, g, 1, 1, 1 FROM generate_series(1, 4000) g")
    create(engine, view)
    run(engine, "INSERT INTO line SELECT -g, 10 * g, 1, 1, 1 FROM generate_series(1, 400) g")

    with engine.begin() as conn:
        view.refresh(conn)
        updated, in_place = conn.execute(UPDATED).one()

    assert updated == in_place == 400
