"""A view that is kept by groups fails for nothing that its query does not fail for."""

from typing import Any

import pytest
from sqlalchemy import Engine, func, literal_column, or_, select

from datapatterns.materialized_view import MaterializedView, Strategy, grouped
from tests.fixtures.view_tables import (
    Line,
    create,
    create_tables,
    differences,
    differences_now,
    largest_lines,
    run,
)


@pytest.fixture(autouse=True)
def shop(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
    run(
        engine,
        "INSERT INTO product VALUES (1, 'dairy'), (2, 'fruit'), (3, NULL)",
        "INSERT INTO line SELECT g, 1, 1 + g % 3, g, 1 FROM generate_series(0, 50) g",
    )


def test_a_key_is_not_asked_of_rows_that_the_query_leaves_out(engine: Engine) -> None:
    quotient = 100 / Line.cents
    dear = or_(  # than the quotient, so that PostgreSQL would look at a key of that first
        *(Line.cents > 0, Line.cents < 0, Line.cents.is_(None), Line.week > 1000),
        *(Line.week < -1000, Line.product_id > 5000, Line.product_id < -5000),
    )
    query = (
        select(quotient.label("key"), func.max(Line.id).label("last"))
        .where(dear)
        .group_by(quotient)
    )
    view = MaterializedView("quotients", query)
    assert view.explain().strategy is Strategy.GROUPS
    create(engine, view)
    run(engine, "INSERT INTO line VALUES (100, 1, 1, NULL, 1)")

    with engine.connect() as conn:
        assert differences_now(conn, view, query) == 0
    with engine.begin() as conn:
        report = view.refresh(conn)
    assert report is not None
    assert report.strategy is Strategy.GROUPS
    assert differences(engine, view, query) == 0


def test_a_value_that_only_looking_for_groups_fails_for_costs_a_rebuild(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = MaterializedView("largest_lines", largest_lines())
    create(engine, view)
    run(engine, "UPDATE line SET cents = cents + 1")

    def fail(*_: Any, **__: Any) -> Any:  # noqa: ANN401 -- as it is called
        return select(literal_column("1 / 0"))

    monkeypatch.setattr(grouped, "apply_groups", fail)
    with engine.begin() as conn:
        report = view.refresh(conn)

    assert report is not None
    assert (report.strategy, report.pending_rows) == (Strategy.REBUILD, 102)
    assert differences(engine, view, largest_lines()) == 0
