"""What a view gives as of now is what its query gives, in every transaction."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.errors import ObjectNotInPrerequisiteState
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import OperationalError

from datapatterns.errors import SnapshotOutdatedError
from datapatterns.materialized_view import Full, MaterializedView
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.view_tables import (
    STOCK,
    Line,
    create,
    create_tables,
    differences_now,
    largest_lines,
    refresh,
    run,
    weekly_sales,
)

WEEKLY = MaterializedView("weekly_sales", weekly_sales())
QUERIES = {
    WEEKLY: weekly_sales(),
    MaterializedView("largest_lines", largest_lines()): largest_lines(),
    MaterializedView("weekly_rebuilt", weekly_sales(), maintain=Full()): weekly_sales(),
}
WRITES = (
    "UPDATE line SET cents = cents + 1, week = NULL WHERE id % 3 = 0",
    "DELETE FROM line WHERE week = 2",
    "UPDATE product SET department = NULL WHERE id = 1",
    "DELETE FROM product WHERE id = 2",
    "INSERT INTO product VALUES (2, 'ü')",
    "INSERT INTO line VALUES (100, 7, 2, NULL, 'NaN')",
    "DELETE FROM line WHERE id = 100",
    "UPDATE line SET weight = weight + 1e-20",
)
AFTERWARDS = "INSERT INTO line SELECT 200 + id, 9, id, 9, 9 FROM product"


@pytest.fixture(autouse=True)
def shop(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
    run(engine, *STOCK)
    create(engine, *QUERIES)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_it_contains_what_the_transaction_has_written_itself(engine: Engine, level: str) -> None:
    with engine.connect().execution_options(isolation_level=level) as conn, conn.begin():
        for write in WRITES:
            conn.execute(text(write))
            for view, query in QUERIES.items():
                assert differences_now(conn, view, query) == 0, write


def test_it_is_that_of_the_readers_snapshot(engine: Engine) -> None:
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with snapshot.connect() as conn, conn.begin():
        before = set(conn.execute(select(WEEKLY.realtime)).all())
        run(engine, *WRITES)
        refresh(engine, WEEKLY)
        run(engine, "UPDATE line SET cents = 0")

        assert set(conn.execute(select(WEEKLY.realtime)).all()) == before
    with engine.connect() as conn:
        assert differences_now(conn, WEEKLY, weekly_sales()) == 0
        assert set(conn.execute(select(WEEKLY.realtime)).all()) != before


def test_nobody_elses_uncommitted_writes_are_in_it(engine: Engine) -> None:
    with engine.connect() as writer, engine.connect() as reader:
        for write in WRITES:
            writer.execute(text(write))
        for view, query in QUERIES.items():
            assert differences_now(reader, view, query) == 0
            # What began before a refresh and ends after it is pending all the same.
            refresh(engine, view)
        reader.commit()
        writer.commit()
        for view, query in QUERIES.items():
            assert differences_now(reader, view, query) == 0


@pytest.mark.parametrize("table", ["line", "product"])
def test_a_truncated_table_is_empty_at_once(engine: Engine, table: str) -> None:
    run(engine, "UPDATE line SET cents = 1", f"TRUNCATE {table}", AFTERWARDS)

    with engine.connect() as conn:
        for view, query in QUERIES.items():
            assert differences_now(conn, view, query) == 0


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_truncate_takes_rows_from_an_older_snapshot_unless_tables_are_held(
    engine: Engine,
    level: str,
    held: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """That is PostgreSQL's: the log shows its marker to later snapshots, as it does all else."""
    before = {view: stored(engine, view) for view in QUERIES}
    with ThreadPoolExecutor() as pool, engine.connect() as conn:
        conn.execution_options(isolation_level=level)
        if held:
            conn.execute(text("LOCK TABLE line, product IN ACCESS SHARE MODE"))
        conn.execute(text("SELECT 1"))  # takes the snapshot
        truncating = pool.submit(run, engine, "TRUNCATE line")
        if held:
            until_blocked_by(engine, conn)
        else:
            truncating.result()

        for view, query in QUERIES.items():
            assert {*conn.execute(select(view.realtime)).all()} == before[view]
            assert (differences_now(conn, view, query) == 0) is held
            if not held:
                with pytest.raises(SnapshotOutdatedError, match="line was"):
                    view.verify(conn)
        conn.rollback()
        truncating.result()
        for view, query in QUERIES.items():
            assert differences_now(conn, view, query) == 0


def stored(engine: Engine, view: MaterializedView) -> set[object]:
    with engine.connect() as conn:
        return {*conn.execute(select(view.table)).all()}


def test_groups_that_nothing_touches_are_not_added_up_again(engine: Engine) -> None:
    run(
        engine,
        "UPDATE line SET cents = 5 WHERE week = 1",
        "UPDATE datapatterns.weekly_sales_stored SET measure_0_sum = measure_0_sum + 1000",
    )

    with engine.connect() as conn:
        sums = dict(conn.execute(select(WEEKLY.realtime.c.week, WEEKLY.realtime.c.cents)).all())

    assert all(cents > 1000 for cents in sums.values())


def test_it_can_be_joined_and_filtered_like_a_table(engine: Engine) -> None:
    run(engine, "INSERT INTO line VALUES (100, 1, 1, 5, 1)")
    now = WEEKLY.realtime.alias()

    with engine.connect() as conn:
        rows = conn.execute(
            select(now.c.lines)
            .join(Line, Line.week == now.c.week)
            .where(Line.id == 100, now.c.department.is_not(None))
        ).all()

    assert rows == [(11,)]


def test_a_view_that_was_not_populated_gives_no_answer(engine: Engine) -> None:
    view = MaterializedView("unpopulated", weekly_sales())
    with engine.begin() as conn:
        view.create(conn)

    with engine.connect() as conn, pytest.raises(OperationalError, match="populate") as raised:
        conn.execute(select(view.realtime)).all()
    assert isinstance(raised.value.orig, ObjectNotInPrerequisiteState)


@pytest.mark.parametrize(
    "restored",
    [
        "UPDATE datapatterns.change_consumer SET system_identifier = 1",
        "UPDATE datapatterns.change_consumer SET database_oid = 1",
    ],
)
def test_a_restored_database_gives_no_answer(engine: Engine, restored: str) -> None:
    run(engine, restored)

    with engine.connect() as conn, pytest.raises(OperationalError, match="another database"):
        conn.execute(select(WEEKLY.realtime)).all()


def test_its_readers_need_no_right_on_anything_else(engine: Engine) -> None:
    run(engine, "UPDATE line SET cents = 1")
    with engine.connect() as conn:
        conn.execute(text("CREATE ROLE looker"))
        conn.execute(text("GRANT USAGE ON SCHEMA datapatterns TO looker"))
        conn.execute(text("GRANT SELECT ON datapatterns.weekly_sales_realtime TO looker"))
        conn.execute(text("SET LOCAL ROLE looker"))
        rows = conn.execute(select(WEEKLY.realtime.c.cents)).all()
        conn.rollback()

    assert rows
