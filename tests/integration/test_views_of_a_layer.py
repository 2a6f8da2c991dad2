"""The views that an application declares: in order, refreshed, waited for, looked at."""

import asyncio
from collections.abc import Iterator
from threading import Thread

import pytest
from sqlalchemy import URL, Engine, column, func, select, table, text

from datapatterns import DataLayer
from datapatterns.change_log import ChangeToken, change_token
from datapatterns.errors import (
    ViewBehindError,
    ViewCycleError,
    ViewMissingError,
    ViewNotPopulatedError,
    ViewTimeoutError,
    ViewUndeclaredError,
)
from datapatterns.materialized_view import (
    MaterializedView,
    RefreshReport,
    Views,
    ViewState,
)
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.view_tables import (
    Line,
    create_tables,
    differences,
    largest_lines,
    run,
    verify,
    weekly_sales,
)

pytestmark = pytest.mark.postgres

WEEKLY = MaterializedView("weekly_sales", weekly_sales(), max_staleness_seconds=60)
LARGEST = MaterializedView("largest_lines", largest_lines())
VIEWS = Views([WEEKLY, LARGEST])
STOCK = (
    "INSERT INTO product VALUES (1, 'dairy'), (2, NULL)",
    "INSERT INTO line SELECT g, 1 + g % 2, 1 + g % 2, 10 * g, g / 4. FROM generate_series(1, 20) g",
)


@pytest.fixture(autouse=True)
def shop(engine: Engine) -> Engine:
    with engine.begin() as conn:
        create_tables(conn)
        VIEWS.create(conn)
    run(engine, *STOCK)
    return engine


@pytest.fixture
def layer(database_url: URL) -> Iterator[DataLayer]:
    with DataLayer(database_url, views=[WEEKLY, LARGEST]) as layer:
        yield layer


def write(engine: Engine) -> ChangeToken:
    with engine.begin() as conn:
        conn.execute(text("UPDATE line SET cents = cents + 1"))
        return change_token(conn)


def test_a_layer_fills_and_refreshes_its_views(engine: Engine, layer: DataLayer) -> None:
    told: list[tuple[str, RefreshReport]] = []
    filled = layer.views.populate(engine, on_view=lambda *done: told.append(done))
    again = layer.views.populate(engine)
    run(engine, "DELETE FROM line WHERE week = 1")
    refreshed = layer.views.refresh(engine)

    assert [*filled] == ["weekly_sales", "largest_lines"]
    assert dict(told) == filled
    assert again == {}
    assert refreshed["weekly_sales"].pending_rows == 10
    assert differences(engine, WEEKLY, weekly_sales()) == 0
    assert differences(engine, LARGEST, largest_lines()) == 0


def test_only_those_that_are_named_are_meant(engine: Engine) -> None:
    assert [*VIEWS.populate(engine, ["largest_lines"])] == ["largest_lines"]
    assert [*VIEWS.refresh(engine, ["largest_lines"])] == ["largest_lines"]
    assert [*VIEWS.rebuild(engine, ["weekly_sales"])] == ["weekly_sales"]
    with pytest.raises(ViewUndeclaredError, match="those that are: largest_lines, w"):
        VIEWS.refresh(engine, ["weekly"])


def test_a_task_refreshes_them_alike(engine: Engine, layer: DataLayer) -> None:
    VIEWS.populate(engine)
    token = write(engine)

    async def refresh() -> dict[str, RefreshReport]:
        try:
            done = await layer.views.refresh_async(layer.async_engine)
            await layer.views.wait_async(layer.async_engine, WEEKLY, token, timeout_seconds=0)
        finally:
            await layer.aclose()
        return done

    done = asyncio.run(refresh())

    assert {name: report.pending_rows for name, report in done.items()} == {
        "weekly_sales": 40,
        "largest_lines": 40,
    }


def test_what_stands_in_the_way_is_raised_at_the_first_view(engine: Engine) -> None:
    with pytest.raises(ViewNotPopulatedError, match="weekly_sales"):
        VIEWS.refresh(engine)


def test_a_view_that_somebody_refreshes_is_left_out_if_that_is_asked_for(engine: Engine) -> None:
    VIEWS.populate(engine)
    with engine.connect() as other:
        WEEKLY.refresh(other)

        assert [*VIEWS.refresh(engine, skip_locked=True)] == ["largest_lines"]


def test_a_table_that_is_locked_is_not_waited_for_then(engine: Engine) -> None:
    VIEWS.populate(engine)
    with engine.connect() as other:
        other.execute(text("LOCK TABLE datapatterns.weekly_sales_stored"))

        assert [*VIEWS.refresh(engine, skip_locked=True)] == ["largest_lines"]


def test_a_refresh_that_takes_too_long_is_given_up(engine: Engine) -> None:
    hasty = MaterializedView("weekly_sales", weekly_sales(), timeout_seconds=0.05)
    VIEWS.populate(engine)
    with engine.connect() as other:
        other.execute(text("LOCK TABLE datapatterns.weekly_sales_stored"))

        with pytest.raises(ViewTimeoutError, match=r"0\.05 s"):
            Views([hasty]).refresh(engine)


def test_a_writer_waits_for_its_write_and_refreshes_the_view_by_itself(engine: Engine) -> None:
    VIEWS.populate(engine)
    token = write(engine)
    with pytest.raises(ViewBehindError):
        VIEWS.wait(engine, WEEKLY, token, timeout_seconds=0.02)

    VIEWS.wait(engine, WEEKLY, token, timeout_seconds=30, refresh=True)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_a_task_waits_and_refreshes_alike(engine: Engine, layer: DataLayer) -> None:
    VIEWS.populate(engine)
    token = write(engine)

    async def wait() -> None:
        try:
            with pytest.raises(ViewBehindError):
                await layer.views.wait_async(
                    layer.async_engine, WEEKLY, token, timeout_seconds=0.02
                )
            await layer.views.wait_async(
                layer.async_engine, WEEKLY, token, timeout_seconds=30, refresh=True
            )
        finally:
            await layer.aclose()

    asyncio.run(wait())

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_a_write_that_is_not_committed_is_not_waited_for_for_ever(engine: Engine) -> None:
    VIEWS.populate(engine)
    with engine.connect() as writer:
        writer.execute(text("DELETE FROM line"))
        token = change_token(writer)

        with pytest.raises(ViewBehindError):
            VIEWS.wait(engine, WEEKLY, token, timeout_seconds=0.1, refresh=True)


def test_the_status_says_how_each_view_stands(engine: Engine) -> None:
    hasty = MaterializedView("weekly_sales", weekly_sales(), max_staleness_seconds=1e-6)
    missing = MaterializedView("missing", select(Line.week, Line.id))
    changed = MaterializedView("largest_lines", largest_lines().where(Line.week > 1))

    def states(*views: MaterializedView) -> dict[str, ViewState]:
        with engine.connect() as conn:
            return {one.name: one.state for one in Views(views).status(conn)}

    empty = states(WEEKLY, LARGEST)
    VIEWS.populate(engine)
    fresh = states(WEEKLY, LARGEST)
    write(engine)

    assert set(empty.values()) == {ViewState.UNPOPULATED}
    assert set(fresh.values()) == {ViewState.FRESH}
    assert states(WEEKLY, missing, changed) == {
        "weekly_sales": ViewState.STALE,
        "missing": ViewState.MISSING,
        "largest_lines": ViewState.CHANGED,
    }
    assert states(hasty) == {"weekly_sales": ViewState.OVERDUE}
    run(engine, "UPDATE datapatterns.change_consumer SET system_identifier = 1")
    assert states(WEEKLY) == {"weekly_sales": ViewState.FOREIGN}


def test_the_status_counts_up_to_a_limit(engine: Engine) -> None:
    VIEWS.populate(engine)
    write(engine)

    with engine.connect() as conn:
        weekly, _ = VIEWS.status(conn, limit=3)

    assert weekly.freshness is not None
    assert weekly.freshness.pending_rows == 3
    assert (weekly.explanation.strategy, weekly.parents) == ("counting", ())


def test_all_are_dropped_together(engine: Engine) -> None:
    with engine.begin() as conn:
        VIEWS.drop(conn)

    with engine.connect() as conn, pytest.raises(ViewMissingError):
        WEEKLY.freshness(conn)


def test_views_come_after_those_that_they_read() -> None:
    of_table = MaterializedView("a", select(func.sum(WEEKLY.c.cents).label("cents")))
    by_name = MaterializedView(
        "b", select(table("a", column("cents"), schema="datapatterns").alias().c.cents.label("c"))
    )
    nested = MaterializedView(
        "c",
        select(Line.id).where(
            Line.cents > select(func.max(of_table.c.cents)).scalar_subquery(),
            select(by_name.c.c).exists(),
        ),
    )

    views = Views([nested, by_name, of_table, WEEKLY])

    assert [view.name for view in views.ordered] == ["weekly_sales", "a", "b", "c"]
    assert views.parents(nested) == ("a", "b")
    assert views.parents(WEEKLY) == ()


def test_a_circle_is_refused_with_its_names() -> None:
    one = MaterializedView("one", select(table("two", column("n"), schema="datapatterns").c.n))
    two = MaterializedView("two", select(one.c.n))

    with pytest.raises(ViewCycleError, match=r"circle: (one -> two|two -> one)"):
        DataLayer("postgresql://ann@db.example/shop", views=[one, two])


def test_what_cannot_be_told_apart_or_found_is_refused() -> None:
    twin = MaterializedView("weekly_sales", largest_lines())
    elsewhere = MaterializedView("weekly_sales", weekly_sales(), schema="derived")

    with pytest.raises(ViewUndeclaredError, match="two are declared"):
        Views([WEEKLY, twin])
    with pytest.raises(ViewUndeclaredError, match="schema='datapatterns'"):
        Views([elsewhere])
    assert Views([elsewhere], schema="derived").find("weekly_sales") is elsewhere


def test_a_refresh_waits_for_another_unless_told_otherwise(engine: Engine) -> None:
    VIEWS.populate(engine)
    write(engine)
    second = Thread(target=VIEWS.refresh, args=(engine,))
    with engine.connect() as first:
        WEEKLY.refresh(first)
        second.start()
        until_blocked_by(engine, first)
        first.commit()
        second.join(timeout=30)

    assert verify(engine, WEEKLY) == []
