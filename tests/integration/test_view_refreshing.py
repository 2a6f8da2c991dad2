"""A refreshed view shows what its query gives, whatever happened to the tables."""

import threading
from decimal import Decimal

import pytest
from sqlalchemy import Engine, func, inspect, select, text
from sqlalchemy.orm import aliased

from datapatterns.change_log import change_token
from datapatterns.errors import (
    IsolationLevelError,
    TransactionInUseError,
    ViewBehindError,
    ViewNotPopulatedError,
)
from datapatterns.materialized_view import (
    Full,
    MaterializedView,
    Strategy,
)
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.colours import Call
from tests.fixtures.view_tables import (
    STOCK,
    AnySelect,
    Line,
    create,
    create_tables,
    differences,
    differences_now,
    largest_lines,
    refresh,
    run,
    verify,
    weekly_sales,
)

WEEKLY = MaterializedView("weekly_sales", weekly_sales())
LARGEST = MaterializedView("largest_lines", largest_lines())
REBUILT = MaterializedView("weekly_rebuilt", weekly_sales(), maintain=Full())
TOTALS = select(
    func.count().label("n"), func.sum(Line.cents).label("cents"), func.avg(Line.cents).label("mean")
)


@pytest.fixture(autouse=True)
def shop(engine: Engine) -> None:
    """Some lines of two weeks, in three departments of which one is unknown."""
    with engine.begin() as conn:
        create_tables(conn)
    run(
        engine,
        *STOCK,
    )


def self_join() -> AnySelect:
    other = aliased(Line)
    return (
        select(Line.week, func.count().label("pairs"), func.sum(other.cents).label("cents"))
        .join(other, Line.product_id == other.product_id)
        .where(Line.id != other.id)
        .group_by(Line.week)
    )


EUROS = Line.cents / 100
QUERIES: dict[str, AnySelect] = {
    "grouped_join": weekly_sales(),
    "self_join": self_join(),
    "no_groups": TOTALS,
    "no_groups_and_a_condition": TOTALS.where(Line.week > 1, Line.cents.between(0, 300)),
    "keys_only": select(Line.week).group_by(Line.week),
    "outer_join": largest_lines(),
    "duplicates": select(Line.week, Line.cents),
    "distinct": select(Line.week).distinct(),
    "having": select(Line.week).group_by(Line.week).having(func.count() > 3),
    "expression": select(EUROS.label("euros"), func.count().label("n")).group_by(EUROS),
}
CHANGES = {
    "insert": "INSERT INTO line VALUES (100, NULL, 3, 7, NULL), (101, 9, 1, NULL, 1)",
    "update_measures": "UPDATE line SET cents = cents + 1, weight = NULL WHERE id % 3 = 0",
    "update_keys": "UPDATE line SET week = CASE week WHEN 1 THEN NULL ELSE 1 END WHERE id < 20",
    "update_join_column": "UPDATE line SET product_id = NULLIF(product_id % 4, 0)",
    "update_the_other_table": "UPDATE product SET department = NULL WHERE id = 1",
    "insert_a_second_match": "INSERT INTO product SELECT id + 10, department FROM product",
    "delete_a_group": "DELETE FROM line WHERE week = 1",
    "delete_all": "DELETE FROM line",
    "truncate": "TRUNCATE line",
    "truncate_and_insert": "TRUNCATE line; INSERT INTO line VALUES (1, 1, 1, 1, 1)",
    "move_and_back": "UPDATE line SET week = 7; UPDATE line SET week = 1",
    "all_at_once": "DELETE FROM product WHERE id = 2; UPDATE line SET product_id = 3, cents = 1;"
    " INSERT INTO product VALUES (2, 'new'); INSERT INTO line VALUES (200, 1, 2, 3, 4)",
}


def test_every_kind_of_view_follows_every_kind_of_change(engine: Engine) -> None:
    views = {name: MaterializedView(name, query) for name, query in QUERIES.items()}
    create(engine, *views.values())
    wrong = []

    for change, statements in CHANGES.items():
        run(engine, "DELETE FROM line", "DELETE FROM product", *STOCK)
        for view in views.values():
            refresh(engine, view)
        run(engine, *statements.split(";"))
        for view in views.values():
            refresh(engine, view)
        wrong += [
            (change, name)
            for name, query in QUERIES.items()
            if differences(engine, views[name], query)
        ]

    assert wrong == []


def test_the_columns_have_the_types_of_the_query(engine: Engine) -> None:
    create(engine, WEEKLY)

    shown = inspect(engine).get_columns("weekly_sales", schema="datapatterns")
    asked = inspect(engine).get_columns("weekly_sales_definition", schema="datapatterns")

    assert [repr(c["type"]) for c in shown] == [repr(c["type"]) for c in asked]


def test_both_colours_refresh_alike(call: Call) -> None:
    call(WEEKLY.create)
    call(WEEKLY.populate)

    report = call(WEEKLY.refresh)

    assert report is not None
    assert (report.strategy, report.pending_rows, report.rows_changed) == (Strategy.COUNTING, 0, 0)


def test_a_refresh_reports_what_it_did(engine: Engine) -> None:
    create(engine, WEEKLY, LARGEST, REBUILT)
    run(engine, "UPDATE line SET cents = cents + 1 WHERE id = 1")

    with engine.begin() as conn:
        counted = WEEKLY.refresh(conn)
    with engine.begin() as conn:
        by_groups = LARGEST.refresh(conn)
    with engine.begin() as conn:
        rebuilt = REBUILT.refresh(conn)

    assert counted is not None
    assert (counted.strategy, counted.pending_rows, counted.rows_changed) == ("counting", 2, 1)
    assert by_groups is not None
    assert (by_groups.strategy, by_groups.pending_rows, by_groups.rows_changed) == ("groups", 2, 0)
    assert rebuilt is not None
    assert (rebuilt.strategy, rebuilt.pending_rows, rebuilt.rows_changed) == ("rebuild", 2, 2)


def test_a_group_that_empties_leaves_no_row_behind(engine: Engine) -> None:
    create(engine, WEEKLY)
    run(engine, "DELETE FROM line")

    refresh(engine, WEEKLY)

    with engine.connect() as conn:
        stored = conn.scalar(text("SELECT count(*) FROM datapatterns.weekly_sales_stored"))
    assert stored == 0


def test_an_aggregate_without_groups_has_one_row_of_an_empty_table(engine: Engine) -> None:
    view = MaterializedView("totals", TOTALS)
    run(engine, "TRUNCATE line")
    create(engine, view)

    with engine.connect() as conn:
        assert conn.execute(select(view.c.n, view.c.cents, view.c.mean)).all() == [(0, None, None)]


@pytest.mark.parametrize("odd", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_come_and_go(engine: Engine, odd: str) -> None:
    create(engine, WEEKLY)
    for write in (
        f"UPDATE line SET weight = '{odd}' WHERE id IN (1, 2, 3)",  # noqa: S608
        "UPDATE line SET weight = '-Infinity' WHERE id = 3",
        "UPDATE line SET weight = 1 WHERE id IN (2, 3)",
        "UPDATE line SET weight = 2 WHERE id = 1",
    ):
        run(engine, write)
        with engine.connect() as conn:
            assert differences_now(conn, WEEKLY, weekly_sales()) == 0, write
        with engine.begin() as conn:
            report = WEEKLY.refresh(conn)

        assert report is not None
        assert report.strategy is Strategy.COUNTING
        assert differences(engine, WEEKLY, weekly_sales()) == 0, write


def test_a_change_between_equal_values_is_taken_in(engine: Engine) -> None:
    view = MaterializedView("weights", select(Line.id, Line.weight))
    run(engine, "UPDATE line SET weight = 1.0")
    create(engine, view)
    run(engine, "UPDATE line SET weight = 1.00 WHERE id = 1")

    refresh(engine, view)

    with engine.connect() as conn:
        weight = conn.scalar(select(view.c.weight).where(view.c.id == 1))
    assert str(weight) == "1.00"


def test_sums_of_huge_numbers_stay_exact(engine: Engine) -> None:
    create(engine, WEEKLY)
    huge = Decimal(10) ** 40
    run(
        engine,
        f"INSERT INTO line VALUES (300, 1, 1, {2**31 - 1}, {huge})",  # noqa: S608
        "INSERT INTO line VALUES (301, 1, 1, 1, 1e-30)",
    )
    refresh(engine, WEEKLY)
    run(engine, "DELETE FROM line WHERE id = 300")
    refresh(engine, WEEKLY)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_uncommitted_and_rolled_back_changes_are_not_taken_in(engine: Engine) -> None:
    create(engine, WEEKLY)
    with engine.connect() as writer:
        writer.execute(text("DELETE FROM line WHERE week = 1"))
        refresh(engine, WEEKLY)
        assert differences(engine, WEEKLY, weekly_sales()) == 0
        with writer.begin_nested() as savepoint:
            writer.execute(text("DELETE FROM line"))
            savepoint.rollback()
        writer.commit()

    refresh(engine, WEEKLY)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_a_late_commit_is_taken_in_once(engine: Engine) -> None:
    create(engine, WEEKLY)
    with engine.connect() as late:
        late.execute(text("INSERT INTO line VALUES (300, 1, 1, 5, 5)"))
        run(engine, "INSERT INTO line VALUES (301, 1, 1, 6, 6)")
        refresh(engine, WEEKLY)
        late.commit()

    for _ in range(2):
        refresh(engine, WEEKLY)
        assert differences(engine, WEEKLY, weekly_sales()) == 0


@pytest.mark.parametrize("view", [WEEKLY, LARGEST], ids=["counting", "groups"])
def test_two_refreshers_apply_a_change_once(engine: Engine, view: MaterializedView) -> None:
    create(engine, view)
    run(engine, "INSERT INTO line VALUES (300, 1, 1, 5000, 5)")
    second = threading.Thread(target=refresh, args=(engine, view))
    with engine.connect() as first:
        view.refresh(first)
        second.start()
        until_blocked_by(engine, first)
        first.commit()
        second.join(timeout=30)

    assert verify(engine, view) == []


def test_a_second_refresher_may_skip(engine: Engine) -> None:
    create(engine, WEEKLY)
    with engine.connect() as first, engine.connect() as second:
        WEEKLY.refresh(first)

        assert WEEKLY.refresh(second, skip_locked=True) is None


def test_readers_and_writers_do_not_wait_for_a_refresh(engine: Engine) -> None:
    create(engine, WEEKLY)
    run(engine, "UPDATE line SET cents = cents + 1")
    with engine.connect() as refresher, engine.begin() as conn:
        WEEKLY.refresh(refresher)
        conn.execute(text("SET LOCAL lock_timeout = '5s'"))

        assert conn.execute(select(WEEKLY.table)).all()
        conn.execute(text("DELETE FROM line WHERE id = 1"))


def test_a_view_is_populated_after_it_was_created(engine: Engine) -> None:
    with engine.begin() as conn:
        WEEKLY.create(conn)
        with pytest.raises(TransactionInUseError):
            WEEKLY.populate(conn)
    with engine.begin() as conn, pytest.raises(ViewNotPopulatedError):
        WEEKLY.refresh(conn)


def test_who_wrote_while_the_view_was_created_is_in_it(engine: Engine) -> None:
    creating = threading.Thread(target=create, args=(engine, WEEKLY))
    with engine.connect() as writer:
        writer.execute(text("INSERT INTO line VALUES (300, 1, 1, 5, 5)"))
        creating.start()
        until_blocked_by(engine, writer)
        writer.execute(text("INSERT INTO line VALUES (301, 1, 1, 5, 5)"))
        writer.commit()
        creating.join(timeout=30)

    refresh(engine, WEEKLY)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_a_transaction_that_has_written_cannot_refresh(engine: Engine) -> None:
    create(engine, WEEKLY)
    with engine.connect() as conn:
        conn.execute(text("DELETE FROM line"))
        with pytest.raises(TransactionInUseError):
            WEEKLY.refresh(conn)


def test_what_is_written_after_a_refresh_in_its_transaction_is_not_lost(engine: Engine) -> None:
    create(engine, WEEKLY)
    with engine.begin() as conn:
        conn.execute(text("SELECT 1"))
        WEEKLY.refresh(conn)
        run(engine, "INSERT INTO line VALUES (300, 1, 1, 5, 5)")
        conn.execute(text("INSERT INTO line VALUES (301, 1, 1, 6, 6)"))

    refresh(engine, WEEKLY)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_refreshing_needs_read_committed(engine: Engine) -> None:
    create(engine, WEEKLY)
    with (
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn,
        pytest.raises(IsolationLevelError),
    ):
        WEEKLY.refresh(conn)


def test_freshness_says_how_far_behind_the_view_is(engine: Engine) -> None:
    create(engine, WEEKLY)
    with engine.connect() as conn:
        fresh = WEEKLY.freshness(conn)
    run(engine, "UPDATE line SET cents = 0 WHERE id <= 3", "DELETE FROM product WHERE id = 4")

    with engine.connect() as conn:
        stale = WEEKLY.freshness(conn)
        counted = WEEKLY.freshness(conn, limit=2)

    assert (fresh.populated, fresh.pending_rows, fresh.stale_seconds) == (True, 0, 0)
    assert stale.pending_rows == 7
    assert stale.stale_seconds > 0
    assert stale.refreshed_at == fresh.refreshed_at
    assert counted.pending_rows == 3


def test_a_writer_can_wait_for_its_write(engine: Engine) -> None:
    create(engine, WEEKLY)
    with engine.begin() as conn:
        conn.execute(text("DELETE FROM line WHERE id = 1"))
        token = change_token(conn)

    with pytest.raises(ViewBehindError):
        WEEKLY.wait(engine, token, timeout_seconds=0.02)
    refresher = threading.Thread(target=refresh, args=(engine, WEEKLY))
    refresher.start()
    WEEKLY.wait(engine, token, timeout_seconds=30)
    refresher.join(timeout=30)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_a_rolled_back_write_is_not_waited_for(engine: Engine) -> None:
    create(engine, WEEKLY)
    with engine.connect() as conn:
        token = change_token(conn)
        conn.rollback()
    refresh(engine, WEEKLY)

    WEEKLY.wait(engine, token, timeout_seconds=0)
