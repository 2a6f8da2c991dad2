"""A part of a view is put right by itself, and the rest of it is refreshed in the same snapshot."""

import pytest
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Engine,
    Integer,
    MetaData,
    Table,
    cast,
    column,
    func,
    literal_column,
    not_,
    select,
)
from sqlalchemy.types import Text

from datapatterns.errors import ViewDiffersError, ViewNotPopulatedError
from datapatterns.materialized_view import Full, MaterializedView, RefreshReport, Strategy
from datapatterns.materialized_view.grouping import restricting
from tests.fixtures.view_tables import (
    STOCK,
    AnySelect,
    Line,
    Product,
    create,
    create_tables,
    differences,
    refresh,
    run,
    verify,
    weekly_sales,
)

WEEKLY = MaterializedView("weekly", weekly_sales())
LARGEST: AnySelect = select(Line.week, func.max(Line.cents).label("largest")).group_by(Line.week)
GROUPED = MaterializedView("grouped", LARGEST)
FULL = MaterializedView("full", LARGEST, maintain=Full())
PLAIN: AnySelect = select(Line.week, Line.weight, Line.cents)
LISTED = MaterializedView("listed", PLAIN)
metered = Table("metered", MetaData(), Column("paid", Boolean), Column("cents", Integer))
QUERIES = {WEEKLY: weekly_sales(), GROUPED: LARGEST, FULL: LARGEST, LISTED: PLAIN}
SPOILED = {
    WEEKLY: "UPDATE datapatterns.weekly_stored SET measure_1_sum = -1, rows = rows + 1",
    GROUPED: "UPDATE datapatterns.grouped_stored SET column_1 = -1",
    FULL: "UPDATE datapatterns.full_stored SET column_1 = -1",
    LISTED: "UPDATE datapatterns.listed_stored SET rows = rows + 1",
}


@pytest.fixture(autouse=True)
def shop(engine: Engine) -> None:
    """Lines of two weeks, and some of none."""
    with engine.begin() as conn:
        create_tables(conn)
    run(engine, *STOCK, "UPDATE line SET week = NULL WHERE id % 5 = 0")


@pytest.fixture(params=QUERIES, ids=lambda view: view.name)
def view(request: pytest.FixtureRequest, engine: Engine) -> MaterializedView:
    view: MaterializedView = request.param
    create(engine, view)
    return view


def mend(engine: Engine, view: MaterializedView, where: object) -> RefreshReport:
    with engine.begin() as conn:
        return view.rebuild(conn, where=where)  # type: ignore[arg-type]  # some are wrong on purpose


def wrong_weeks(engine: Engine, view: MaterializedView) -> set[object]:
    return {one.row["week"] for one in verify(engine, view)}


def test_only_the_part_is_put_right(engine: Engine, view: MaterializedView) -> None:
    run(engine, SPOILED[view])
    assert wrong_weeks(engine, view) == {1, 2, None}

    first = mend(engine, view, view.c.week == 1)
    assert wrong_weeks(engine, view) == {2, None}
    mend(engine, view, view.c.week.is_(None))
    assert wrong_weeks(engine, view) == {2}
    mend(engine, view, view.c.week > 1)

    assert first.reason is None
    assert first.rows_changed > 0
    assert wrong_weeks(engine, view) == set()
    assert mend(engine, view, view.c.week < 9).rows_changed == 0


def test_the_rest_is_refreshed(engine: Engine, view: MaterializedView) -> None:
    run(
        engine,
        SPOILED[view] + (" WHERE key_0 = 1" if view in {WEEKLY, LISTED} else " WHERE column_0 = 1"),
        "UPDATE line SET week = 1 + week % 2, cents = cents + 1 WHERE id < 9",
        "INSERT INTO line VALUES (99, 1, 1, 5, 2.5), (98, 7, 1, 5, 2.5), (97, NULL, 2, 5, 2.5)",
    )

    report = mend(engine, view, view.c.week.in_([1, 8]))

    assert report.pending_rows > 0
    assert differences(engine, view, QUERIES[view]) == 0
    run(engine, "DELETE FROM line WHERE id > 90")
    refresh(engine, view)
    assert differences(engine, view, QUERIES[view]) == 0
    assert verify(engine, view) == []


@pytest.mark.parametrize("value", [func.count(), func.max(metered.c.cents)], ids=["count", "max"])
def test_rows_for_which_a_condition_is_unknown_are_outside_of_the_part(
    engine: Engine, value: ColumnElement[int]
) -> None:
    query: AnySelect = select(metered.c.paid, value.label("n")).group_by(metered.c.paid)
    view = MaterializedView("by_payment", query)
    with engine.begin() as conn:
        metered.create(conn)
    run(engine, "INSERT INTO metered VALUES (true, 1), (false, 2), (NULL, 3)")
    create(engine, view)
    for where in (not_(view.c.paid), not_(cast(view.c.paid, Boolean)), view.c.paid):
        run(engine, "INSERT INTO metered SELECT paid, cents + 1 FROM metered")

        mend(engine, view, where)

        assert differences(engine, view, query) == 0


def test_keys_that_share_a_hash_are_on_one_side_each(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restricting, "key_hash", lambda _: literal_column("7"))
    query: AnySelect = select(
        Line.week, Product.department, func.max(Line.cents).label("largest")
    ).join(Product, Product.id == Line.product_id)
    query = query.group_by(Line.week, Product.department)
    view = MaterializedView("by_department", query)
    create(engine, view)
    run(engine, "UPDATE line SET cents = cents + 1 WHERE product_id IN (3, 4)")

    report = mend(engine, view, view.c.week == 1)

    assert (report.strategy, report.reason) == (Strategy.GROUPS, None)
    assert differences(engine, view, query) == 0


def test_a_part_is_told_by_what_the_query_groups_by(engine: Engine) -> None:
    create(engine, WEEKLY, LISTED)
    weights = MaterializedView(
        "weights", select(Line.weight, func.count().label("n")).group_by(Line.weight)
    )
    create(engine, weights)

    with pytest.raises(ValueError, match="told by: week, department"):
        mend(engine, WEEKLY, WEEKLY.c.cents > 5)
    with pytest.raises(ValueError, match="no column 'weeks'"):
        mend(engine, WEEKLY, column("weeks") > 5)
    with pytest.raises(TypeError, match="compute them before"):
        mend(engine, WEEKLY, WEEKLY.c.week > func.random())
    with pytest.raises(TypeError, match="leave out queries"):
        mend(engine, WEEKLY, WEEKLY.c.week.in_(select(Line.week)))
    with pytest.raises(ValueError, match="equal values of 'weight' may differ"):
        mend(engine, weights, cast(weights.c.weight, Text) == "1.00")
    mend(engine, LISTED, LISTED.c.weight > 3)  # each row stands for itself
    assert differences(engine, LISTED, PLAIN) == 0


def test_who_counts_fewer_rows_than_none_elsewhere_is_not_put_right_by_a_part(
    engine: Engine,
) -> None:
    create(engine, WEEKLY)
    run(
        engine,
        "UPDATE datapatterns.weekly_stored SET rows = 1 WHERE key_0 = 2",
        "DELETE FROM line WHERE week = 2",
    )

    with pytest.raises(ViewDiffersError):
        mend(engine, WEEKLY, WEEKLY.c.week == 1)
    mend(engine, WEEKLY, WEEKLY.c.week == 2)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_a_view_is_filled_as_a_whole(engine: Engine) -> None:
    with engine.begin() as conn:
        WEEKLY.create(conn)

    with pytest.raises(ViewNotPopulatedError):
        mend(engine, WEEKLY, WEEKLY.c.week == 1)


def test_a_truncation_asks_for_all_of_it(engine: Engine) -> None:
    create(engine, GROUPED)
    run(engine, "TRUNCATE line", "INSERT INTO line VALUES (1, 3, 1, 5, 2.5)")

    report = mend(engine, GROUPED, GROUPED.c.week == 1)

    assert report.strategy is Strategy.REBUILD
    assert report.reason is not None
    assert differences(engine, GROUPED, LARGEST) == 0
