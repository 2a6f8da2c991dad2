"""A view is rebuilt for once where following what has changed would cost more."""

import pytest
from sqlalchemy import Engine

from datapatterns.materialized_view import MaterializedView, Strategy
from tests.fixtures.view_tables import (
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
