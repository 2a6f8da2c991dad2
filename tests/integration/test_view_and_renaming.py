"""A view never follows a table or column that is called otherwise than when it was created."""

from collections.abc import Callable

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, func, select, text

from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.errors import ViewChangedError
from datapatterns.materialized_view import Full, MaterializedView
from tests.fixtures.view_tables import create, differences, refresh, run

pair = Table(
    "pair",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("a", Integer),
    Column("b", Integer),
)
QUERY = select(pair.c.a, func.sum(pair.c.b).label("b")).group_by(pair.c.a)


@pytest.fixture(params=["counted", "rebuilt"])
def view(request: pytest.FixtureRequest, engine: Engine) -> MaterializedView:
    """A view of a table with one row."""
    pair.create(engine)
    run(engine, "INSERT INTO pair VALUES (1, 1, 2)")
    kept = (
        MaterializedView("pairs", QUERY)
        if request.param == "counted"
        else MaterializedView("pairs", QUERY, maintain=Full())
    )
    create(engine, kept)
    return kept


@pytest.mark.parametrize(
    "changes",
    [
        ["RENAME a TO old", "ADD a int"],
        ["RENAME a TO x", "RENAME b TO a", "RENAME x TO b"],
        ["RENAME TO couple"],
    ],
)
@pytest.mark.parametrize("operation", [MaterializedView.refresh, MaterializedView.rebuild])
def test_what_was_renamed_is_refused(
    engine: Engine,
    view: MaterializedView,
    changes: list[str],
    operation: Callable[[MaterializedView, Connection], object],
) -> None:
    run(engine, *(f"ALTER TABLE pair {change}" for change in changes))

    with engine.connect() as conn, pytest.raises(ViewChangedError):
        operation(view, conn)


def test_a_table_that_was_made_anew_is_refused_until_the_view_is(
    engine: Engine, view: MaterializedView
) -> None:
    run(engine, "DROP TABLE pair CASCADE")
    pair.create(engine)
    run(engine, "INSERT INTO pair VALUES (5, 5, 5)")

    with engine.connect() as conn, pytest.raises(ViewChangedError):
        view.refresh(conn)
    with engine.begin() as conn:
        view.drop(conn)
    create(engine, view)
    run(engine, "INSERT INTO pair VALUES (6, 6, 6)")
    refresh(engine, view)

    assert differences(engine, view, QUERY) == 0


@pytest.mark.parametrize("path", ["other", "''"], ids=["another", "none"])
def test_no_other_table_of_the_search_path_is_counted(engine: Engine, path: str) -> None:
    pair.create(engine)
    run(engine, "INSERT INTO pair VALUES (1, 1, 2)")
    run(engine, "CREATE SCHEMA other", "CREATE TABLE other.pair AS SELECT 1 AS id, 9 AS a, 9 AS b")
    view = MaterializedView("pairs", QUERY)
    create(engine, view)

    with engine.connect() as conn:
        conn.execute(text(f"SET LOCAL search_path = {path}"))
        with pytest.raises(ViewChangedError):
            view.rebuild(conn, clock=SYSTEM_CLOCK)
