"""Views on views in an application's own Alembic environment: in which order they come and go."""

import re
from collections.abc import Callable

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, func, select, text

from datapatterns.alembic import register_views
from datapatterns.errors import ViewDefinitionError, ViewInUseError
from datapatterns.materialized_view import Incremental, MaterializedView, Views
from tests.fixtures.alembic_environments import Environment
from tests.fixtures.view_tables import AnySelect, run
from tests.migrations.test_views_in_migrations import lines, shown, weekly

pytestmark = pytest.mark.postgres

Upon = Callable[[MaterializedView], AnySelect]


def monthly(view: MaterializedView) -> AnySelect:
    month = (view.c.week // 4).label("month")
    return select(month, func.sum(view.c.cents).label("cents")).group_by(month)


def best(view: MaterializedView) -> AnySelect:
    return select(func.max(view.c.cents).label("cents"))


def over_99(view: MaterializedView) -> AnySelect:
    return monthly(view).where(view.c.cents > 99)


def shop(
    lowest: Callable[..., AnySelect] | None = weekly, *, more: bool = False, **upon: Upon
) -> MetaData:
    """Return a shop's tables with a view, and views each built upon the one before."""
    metadata = MetaData()
    line = lines(metadata, *([Column("pieces", Integer)] if more else []))
    views: list[MaterializedView] = []
    if lowest is not None:
        views.append(MaterializedView("weekly", lowest(line)))
    for name, query in upon.items():
        views.append(MaterializedView(name, query(views[-1])))
    register_views(metadata, reversed(views))
    return metadata


def views_of(environment: Environment) -> Views:
    assert isinstance(environment.metadata, MetaData)
    views: Views = environment.metadata.info["datapatterns.views"]["datapatterns"]
    return views


def filled(environment: Environment) -> None:
    """Do what a worker of today's code does, until all is in its place."""
    views = views_of(environment)
    for _ in range(2):
        views.populate(environment.engine)
        views.refresh(environment.engine)
    for view in views.ordered:
        assert views.verify(environment.engine, view).matches


def steps(code: str) -> list[tuple[str, str]]:
    """Return what an upgrade does to views, and which."""
    upgrade = code.split("def downgrade", maxsplit=1)[0]
    found = re.findall(r"op\.(\w+)_materialized_view\(\s*'(\w+)'(.*?)\n    \)", upgrade, re.DOTALL)
    return [
        (f"{what} at once" if "at_once=True" in rest else what, name) for what, name, rest in found
    ]


@pytest.fixture
def stacked(environment: Environment) -> Environment:
    """Three views, each upon the one before, filled."""
    environment.metadata = shop(monthly=monthly, best=best)
    environment.revise()
    environment.upgrade()
    run(environment.engine, "INSERT INTO line VALUES (1, 7, 250), (2, 8, 1)")
    filled(environment)
    return environment


def test_they_are_created_from_below_and_dropped_from_above(environment: Environment) -> None:
    environment.metadata = shop(monthly=monthly, best=best)
    code = environment.revise()
    for _ in range(2):
        environment.upgrade()
        assert environment.differences() == []
        environment.downgrade("base")
    environment.upgrade()
    filled(environment)
    environment.metadata = shop(None)
    gone = environment.revise()
    environment.upgrade()

    assert steps(code) == [("create", "weekly"), ("create", "monthly"), ("create", "best")]
    assert steps(gone) == [("drop", "best"), ("drop", "monthly"), ("drop", "weekly")]
    assert environment.differences() == []
    environment.downgrade("r1")
    environment.metadata = shop(monthly=monthly, best=best)
    filled(environment)
    assert environment.compared() == []


def test_one_comes_upon_another_that_is_there(environment: Environment) -> None:
    environment.metadata = shop()
    environment.revise()
    environment.upgrade()
    run(environment.engine, "INSERT INTO line VALUES (1, 7, 250)")
    filled(environment)
    environment.metadata = shop(monthly=monthly)

    code = environment.revise()
    environment.upgrade()
    assert shown(environment.engine) == [(7, 250)]
    filled(environment)
    assert shown(environment.engine, "monthly") == [(1, 250)]
    environment.downgrade("r1")

    assert steps(code) == [("create", "monthly")]
    assert shown(environment.engine) == [(7, 250)]
    environment.metadata = shop()
    assert environment.compared() == []


@pytest.mark.parametrize("is_filled", [True, False])
def test_one_moves_upon_another_that_comes_and_back(
    environment: Environment, *, is_filled: bool
) -> None:
    metadata = MetaData()
    line = lines(metadata)
    register_views(metadata, [MaterializedView("best", weekly(line))])
    environment.metadata = metadata
    environment.revise()
    environment.upgrade()
    run(environment.engine, "INSERT INTO line VALUES (1, 7, 250)")
    filled(environment)
    environment.metadata = shop(best=best)

    code = environment.revise()
    environment.upgrade()
    if is_filled:
        filled(environment)
        assert shown_best(environment) == [250]
    environment.downgrade("r1")

    assert steps(code) == [("create", "weekly"), ("replace", "best")]
    environment.metadata = metadata
    assert environment.compared() == []
    filled(environment)
    assert shown(environment.engine, "best") == [(7, 250)]


def test_one_moves_upon_another_that_changes_and_back(environment: Environment) -> None:
    def declared(lower: AnySelect, upper: Callable[[MaterializedView], AnySelect]) -> MetaData:
        below = MaterializedView("weekly", lower)
        metadata = line.metadata
        metadata.info.clear()
        register_views(metadata, [below, MaterializedView("best", upper(below))])
        return metadata

    line = lines(MetaData())
    largest = select(line.c.week, func.max(line.c.cents).label("cents")).group_by(line.c.week)
    environment.metadata = declared(weekly(line), lambda _: weekly(line))
    environment.revise()
    environment.upgrade()
    run(environment.engine, "INSERT INTO line VALUES (1, 7, 250), (2, 7, 1)")
    filled(environment)
    environment.metadata = declared(largest, best)

    code = environment.revise()
    environment.upgrade()
    filled(environment)
    assert shown_best(environment) == [250]
    environment.downgrade("r1")

    assert steps(code) == [("replace at once", "weekly"), ("replace", "best")]
    environment.metadata = declared(weekly(line), lambda _: weekly(line))
    assert environment.compared() == []
    filled(environment)
    assert shown(environment.engine, "best") == [(7, 251)]


def test_the_uppermost_is_replaced_behind_its_readers(stacked: Environment) -> None:
    stacked.metadata = shop(
        monthly=monthly, best=lambda view: select(func.min(view.c.cents).label("cents"))
    )

    code = stacked.revise()
    stacked.upgrade()
    assert shown_best(stacked) == [250]
    assert stacked.differences() == []
    filled(stacked)
    assert shown_best(stacked) == [1]
    stacked.downgrade("r1")
    stacked.metadata = shop(monthly=monthly, best=best)
    assert shown_best(stacked) == [1]
    filled(stacked)

    assert steps(code) == [("replace", "best")]
    assert shown_best(stacked) == [250]
    assert stacked.compared() == []


def shown_best(environment: Environment) -> list[object]:
    with environment.engine.connect() as conn:
        return [*conn.scalars(text("SELECT cents FROM datapatterns.best"))]


def test_what_is_built_upon_one_that_changes_is_made_anew(stacked: Environment) -> None:
    stacked.metadata = shop(monthly=over_99, best=best)

    code = stacked.revise()
    stacked.upgrade()
    assert steps(code) == [
        ("drop", "best"),
        ("replace at once", "monthly"),
        ("create", "best"),
    ]
    assert shown(stacked.engine) == [(7, 250), (8, 1)]  # which stays in service
    assert stacked.differences() == []
    filled(stacked)
    assert shown(stacked.engine, "monthly") == [(1, 250)]
    stacked.downgrade("r1")
    stacked.metadata = shop(monthly=monthly, best=best)
    filled(stacked)

    assert shown(stacked.engine, "monthly") == [(1, 250), (2, 1)]
    assert stacked.compared() == []


def test_all_of_them_may_change_at_once(stacked: Environment) -> None:
    def most(line: object) -> AnySelect:
        return weekly(line).add_columns(func.max(line.c.pieces).label("most"))  # type: ignore[attr-defined,arg-type]

    stacked.metadata = shop(
        most,
        more=True,
        monthly=lambda view: monthly(view).add_columns(func.max(view.c.most).label("most")),
        best=lambda view: select(func.max(view.c.most).label("cents")),
    )

    code = stacked.revise()
    stacked.upgrade()
    run(stacked.engine, "UPDATE line SET pieces = 3")
    filled(stacked)
    assert shown_best(stacked) == [3]
    stacked.downgrade("r1")
    stacked.metadata = shop(monthly=monthly, best=best)
    filled(stacked)

    assert steps(code) == [
        ("drop", "best"),
        ("drop", "monthly"),
        ("replace at once", "weekly"),
        ("create", "monthly"),
        ("create", "best"),
    ]
    assert shown_best(stacked) == [250]
    assert stacked.compared() == []


def test_one_lets_go_of_another_that_is_dropped(stacked: Environment) -> None:
    metadata = MetaData()
    line = lines(metadata)
    register_views(
        metadata, [MaterializedView("best", select(func.max(line.c.cents).label("cents")))]
    )
    stacked.metadata = metadata

    code = stacked.revise()
    stacked.upgrade()
    filled(stacked)
    assert shown_best(stacked) == [250]
    stacked.downgrade("r1")
    stacked.metadata = shop(monthly=monthly, best=best)
    filled(stacked)

    assert steps(code) == [
        ("drop", "best"),
        ("drop", "monthly"),
        ("drop", "weekly"),
        ("create", "best"),
    ]
    assert stacked.compared() == []


def test_what_was_changed_by_hand_below_is_mended_with_what_is_above(stacked: Environment) -> None:
    run(stacked.engine, "DROP VIEW datapatterns.weekly_realtime")

    code = stacked.revise()
    stacked.upgrade()
    filled(stacked)

    assert [what for what, _ in steps(code)] == ["drop"] * 3 + ["create"] * 3
    assert stacked.differences() == []


def test_a_column_goes_that_the_lowest_reads(stacked: Environment) -> None:
    metadata = MetaData()
    line = lines(metadata)
    line._columns.remove(line.c.cents)  # noqa: SLF001 -- a table of today
    low = MaterializedView(
        "weekly", select(line.c.week, func.count().label("cents")).group_by(line.c.week)
    )
    up = MaterializedView("monthly", monthly(low))
    register_views(metadata, [low, up, MaterializedView("best", best(up))])
    stacked.metadata = metadata

    code = stacked.revise()
    stacked.upgrade()
    filled(stacked)

    assert code.index("drop_materialized_view") < code.index("op.drop_column")
    assert [what for what, _ in steps(code)] == ["drop"] * 3 + ["create"] * 3
    assert shown_best(stacked) == [1]


def test_nothing_is_built_upon_what_is_about_to_be_replaced(environment: Environment) -> None:
    environment.metadata = shop()
    environment.revise()
    environment.upgrade()
    run(environment.engine, "INSERT INTO line VALUES (1, 7, 250)")
    filled(environment)
    environment.metadata = below = shop(lambda line: weekly(line).where(line.c.cents > 99))
    environment.revise()
    environment.upgrade()
    environment.metadata = shop(lambda line: weekly(line).where(line.c.cents > 99), monthly=monthly)
    environment.revise()

    with pytest.raises(ViewDefinitionError, match="refresh that one"):
        environment.upgrade()
    both, environment.metadata = environment.metadata, below
    filled(environment)
    environment.metadata = both
    environment.upgrade()
    filled(environment)
    assert environment.differences() == []


def test_who_asks_for_more_than_a_rebuild_is_told_so(environment: Environment) -> None:
    metadata = MetaData()
    low = MaterializedView("weekly", weekly(lines(metadata)))
    by_name = Table("weekly", MetaData(), Column("cents", Integer), schema="datapatterns")
    up = MaterializedView(
        "monthly", select(func.count(by_name.c.cents).label("n")), maintain=Incremental()
    )
    register_views(metadata, [low, up])
    environment.metadata = metadata

    with pytest.raises(ViewDefinitionError, match="built upon the view weekly"):
        environment.revise()


def test_by_hand_a_view_that_others_read_is_not_replaced(stacked: Environment) -> None:
    stacked.metadata = shop(monthly=over_99, best=best)
    code = stacked.revise()
    path = stacked.folder / "versions" / "r2_r2.py"
    drop = r"    op\.drop_materialized_view\(.*?\n    \)\n"
    path.write_text(re.sub(drop, "", code, count=1, flags=re.DOTALL))

    with pytest.raises(ViewInUseError, match="create them anew after it"):
        stacked.upgrade()
