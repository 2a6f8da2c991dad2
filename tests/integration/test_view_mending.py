"""What is wrong with a view is found while others write, and a rebuild puts it right."""

import pytest
from sqlalchemy import Engine, select, text

from datapatterns.change_log import change_log_tables
from datapatterns.change_log.capture_names import batches_name, rows_name
from datapatterns.errors import (
    SnapshotOutdatedError,
    ViewDiffersError,
)
from datapatterns.materialized_view import (
    DifferenceKind,
    MaterializedView,
)
from tests.fixtures.view_tables import (
    STOCK,
    create,
    create_tables,
    differences,
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
    """Some lines of two weeks, in three departments of which one is unknown."""
    with engine.begin() as conn:
        create_tables(conn)
    run(
        engine,
        *STOCK,
    )


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
            for held in (rows_name(log_name), batches_name(log_name)):
                conn.execute(text(f"DELETE FROM datapatterns.{held}"))  # noqa: S608

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
