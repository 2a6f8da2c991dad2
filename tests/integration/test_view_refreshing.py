"""A refreshed view shows what its query gives, whatever happened to the tables."""

import threading
from decimal import Decimal

import pytest
from sqlalchemy import Engine, func, inspect, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import aliased

from datapatterns.change_log import ChangeLog, change_log_tables, change_token
from datapatterns.errors import (
    ForeignSnapshotError,
    IsolationLevelError,
    SnapshotOutdatedError,
    TransactionInUseError,
    ViewBehindError,
    ViewChangedError,
    ViewDiffersError,
    ViewMissingError,
    ViewNotPopulatedError,
)
from datapatterns.materialized_view import (
    DifferenceKind,
    Full,
    MaterializedView,
    Strategy,
)
from datapatterns.sql.migrating import upgrade
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.colours import Call
from tests.fixtures.view_tables import (
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


STOCK = (
    "INSERT INTO product VALUES (1, 'dairy'), (2, 'Bäckerei 🥐'), (3, NULL), (4, NULL)",
    "INSERT INTO line SELECT g, 1 + g % 2, 1 + g % 4, 10 * g, g / 4. FROM generate_series(1, 40) g",
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


def test_a_refresher_that_dies_changes_nothing(engine: Engine) -> None:
    create(engine, WEEKLY)
    run(engine, "UPDATE line SET cents = cents + 1")
    with engine.connect() as conn:
        WEEKLY.refresh(conn)
        pid = conn.scalar(text("SELECT pg_backend_pid()"))
        with engine.begin() as killer:
            killer.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        with pytest.raises(OperationalError):
            conn.execute(text("SELECT 1"))

    refresh(engine, WEEKLY)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


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


@pytest.mark.parametrize("view", [WEEKLY, LARGEST], ids=["counting", "groups"])
def test_verify_shows_what_is_wrong_and_a_rebuild_mends_it(
    engine: Engine, view: MaterializedView
) -> None:
    create(engine, view)
    column = "measure_1_sum" if view is WEEKLY else "column_1"
    run(engine, f"UPDATE datapatterns.{view.name}_stored SET {column} = -1 WHERE ctid = '(0,1)'")  # noqa: S608

    found = verify(engine, view)
    with engine.begin() as conn:
        view.rebuild(conn)

    assert {difference.kind for difference in found} == set(DifferenceKind)
    assert verify(engine, view) == []


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_verify_is_exact_while_others_write(engine: Engine, level: str) -> None:
    create(engine, WEEKLY)
    with engine.connect() as writer:
        writer.execute(text("UPDATE line SET cents = cents + 1"))
        with engine.connect().execution_options(isolation_level=level) as conn, conn.begin():
            conn.execute(text("SELECT 1"))
            writer.commit()

            assert WEEKLY.verify(conn) == []
    assert verify(engine, WEEKLY) == []


@pytest.mark.parametrize(
    "rewrite", ["TRUNCATE line", "ALTER TABLE line ADD COLUMN z uuid DEFAULT gen_random_uuid()"]
)
def test_verify_notices_that_its_snapshot_lost_rows(engine: Engine, rewrite: str) -> None:
    create(engine, WEEKLY)
    with (
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn,
        conn.begin(),
    ):
        conn.execute(text("SELECT count(*) FROM product"))
        run(engine, rewrite)

        with pytest.raises(SnapshotOutdatedError, match="line"):
            WEEKLY.verify(conn)


def test_verify_waits_for_no_refresh_and_keeps_none_waiting(engine: Engine) -> None:
    create(engine, WEEKLY)
    run(engine, "UPDATE line SET cents = cents + 1")

    with engine.connect() as refresher, engine.connect() as conn:
        WEEKLY.refresh(refresher)
        conn.execute(text("SET LOCAL lock_timeout = '5s'"))
        assert WEEKLY.verify(conn) == []
        refresher.commit()
        refresher.execute(text("SET LOCAL lock_timeout = '5s'"))
        WEEKLY.refresh(refresher)
        refresher.commit()

        assert WEEKLY.verify(conn) == []


def test_verify_in_an_old_snapshot_sees_what_was_stored_then(engine: Engine) -> None:
    create(engine, WEEKLY)
    with (
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn,
        conn.begin(),
    ):
        conn.execute(text("SELECT count(*) FROM product"))
        run(engine, "UPDATE line SET cents = cents + 1")
        refresh(engine, WEEKLY)

        assert WEEKLY.verify(conn) == []


def test_verify_contains_what_its_own_transaction_has_written(engine: Engine) -> None:
    create(engine, WEEKLY)
    with engine.connect() as conn:
        conn.execute(text("UPDATE line SET cents = cents + 1"))

        assert WEEKLY.verify(conn) == []


def test_a_rebuild_replaces_a_group_that_differs(engine: Engine) -> None:
    create(engine, WEEKLY)
    run(engine, "UPDATE datapatterns.weekly_sales_stored SET rows = rows + 1")

    with engine.begin() as conn:
        report = WEEKLY.rebuild(conn)

    assert report.rows_changed == 2 * 4
    assert verify(engine, WEEKLY) == []


def test_counting_below_none_is_reported(engine: Engine) -> None:
    create(engine, WEEKLY)
    run(
        engine,
        "UPDATE datapatterns.weekly_sales_stored SET rows = 1",
        "DELETE FROM line",
    )

    with engine.connect() as conn, pytest.raises(ViewDiffersError):
        WEEKLY.refresh(conn)
    with engine.begin() as conn:
        WEEKLY.rebuild(conn)
    assert verify(engine, WEEKLY) == []


def test_changes_that_are_missing_from_the_log_are_found(engine: Engine) -> None:
    create(engine, WEEKLY, LARGEST)
    run(engine, "UPDATE line SET cents = 100000 WHERE id = 1")
    with engine.begin() as conn:
        for log_name in conn.scalars(select(change_log_tables("datapatterns").captured.c.log_name)):
            conn.execute(text(f"DELETE FROM datapatterns.{log_name}"))  # noqa: S608

    assert verify(engine, WEEKLY)
    assert verify(engine, LARGEST)


def test_changes_that_disabled_triggers_have_missed_are_taken_in_by_a_rebuild(
    engine: Engine,
) -> None:
    create(engine, WEEKLY, LARGEST)
    run(
        engine,
        "ALTER TABLE line DISABLE TRIGGER ALL",
        "UPDATE line SET cents = 100000 WHERE id = 1",
        "ALTER TABLE line ENABLE TRIGGER ALL",
    )
    for view in (WEEKLY, LARGEST):
        refresh(engine, view)

    assert differences(engine, WEEKLY, weekly_sales()) == 0
    assert differences(engine, LARGEST, largest_lines()) == 0


def test_a_changed_definition_is_refused(engine: Engine) -> None:
    create(engine, WEEKLY)
    changed = MaterializedView("weekly_sales", weekly_sales().where(Line.week > 1))

    with engine.connect() as conn:
        for operation in (changed.create, changed.freshness, changed.explain):
            with pytest.raises(ViewChangedError):
                operation(conn)
    for locking in (changed.refresh, changed.populate):
        with engine.connect() as conn, pytest.raises(ViewChangedError):
            locking(conn)


def test_a_missing_view_is_reported(engine: Engine) -> None:
    for operation in (WEEKLY.refresh, WEEKLY.populate, WEEKLY.freshness, WEEKLY.explain):
        with engine.connect() as conn, pytest.raises(ViewMissingError):
            operation(conn)
    with pytest.raises(ViewMissingError):
        verify(engine, WEEKLY)


def test_creating_twice_changes_nothing(engine: Engine) -> None:
    create(engine, WEEKLY)

    with engine.begin() as conn:
        WEEKLY.create(conn)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_a_dropped_view_leaves_nothing_but_what_others_use(engine: Engine) -> None:
    before = inspect(engine).get_table_names(schema="datapatterns")
    views_before = inspect(engine).get_view_names(schema="datapatterns")
    create(engine, WEEKLY, LARGEST)

    with engine.begin() as conn:
        WEEKLY.drop(conn)
        WEEKLY.drop(conn)
    run(engine, "UPDATE line SET cents = 0")
    refresh(engine, LARGEST)
    assert differences(engine, LARGEST, largest_lines()) == 0
    with engine.begin() as conn:
        LARGEST.drop(conn)

    assert inspect(engine).get_table_names(schema="datapatterns") == before
    assert inspect(engine).get_view_names(schema="datapatterns") == views_before


def test_garbage_collection_waits_for_the_slowest_view(engine: Engine) -> None:
    create(engine, WEEKLY, LARGEST)
    run(engine, "UPDATE line SET cents = 0")
    refresh(engine, LARGEST)
    with engine.begin() as conn:
        assert ChangeLog().collect_garbage(conn) == 0

    refresh(engine, WEEKLY)
    with engine.begin() as conn:
        collected = ChangeLog().collect_garbage(conn)

    assert collected == 80
    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_garbage_is_kept_for_a_view_that_is_yet_to_be_populated(engine: Engine) -> None:
    create(engine, LARGEST)
    with engine.begin() as conn:
        WEEKLY.create(conn)
    with engine.connect() as late, engine.connect() as populating:
        # This one is older than the populating transaction, whose own id holds back nothing of it.
        late.execute(text("DELETE FROM line WHERE week = 1"))
        WEEKLY.populate(populating)
        late.commit()
        refresh(engine, LARGEST)
        with engine.begin() as conn:
            assert ChangeLog().collect_garbage(conn) == 0
        populating.commit()

    refresh(engine, WEEKLY)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_a_restored_database_is_refused_until_it_is_rebased(engine: Engine) -> None:
    create(engine, WEEKLY)
    run(engine, "UPDATE datapatterns.change_consumer SET system_identifier = 1")
    foreign = text(
        "SELECT format('INSERT INTO datapatterns.%I "
        " (change_xid, change_sign, week, product_id, cents)"
        " VALUES (''999999999999'', 1, 1, 1, 9999)', log_name) FROM datapatterns.captured_table"
        " WHERE table_name = 'line'"
    )
    with engine.begin() as conn:
        conn.execute(text(conn.execute(foreign).scalar_one()))

    for operation in (WEEKLY.refresh, WEEKLY.populate, WEEKLY.freshness):
        with engine.connect() as conn, pytest.raises(ForeignSnapshotError):
            operation(conn)
    with engine.connect() as conn, pytest.raises(ForeignSnapshotError):
        ChangeLog().collect_garbage(conn)
    with engine.begin() as conn:
        assert ChangeLog().rebase(conn) == 1
    with engine.begin() as conn, pytest.raises(ViewNotPopulatedError):
        WEEKLY.refresh(conn)
    with engine.begin() as conn:
        WEEKLY.populate(conn)
    run(engine, "UPDATE line SET cents = cents + 1")
    refresh(engine, WEEKLY)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def test_a_view_lives_in_a_schema_of_another_name(engine: Engine) -> None:
    with engine.begin() as conn:
        upgrade(conn, schema="derived")
    there = MaterializedView("weekly_sales", weekly_sales(), schema="derived")
    here = MaterializedView("weekly_sales", weekly_sales(), maintain=Full())
    create(engine, here, there)
    run(engine, "DELETE FROM line WHERE week = 1", "UPDATE product SET department = 'x'")

    refresh(engine, there)

    assert differences(engine, there, weekly_sales()) == 0
    assert verify(engine, there) == []
    with engine.connect() as conn:
        assert here.freshness(conn).pending_rows > 0
        assert there.freshness(conn).pending_rows == 0
    with engine.begin() as conn:
        assert ChangeLog("derived").collect_garbage(conn) > 0
        there.drop(conn)
    refresh(engine, here)
    assert differences(engine, here, weekly_sales()) == 0
