"""A view is created, changed, dropped and restored without losing a change or leaving anything."""

import pytest
from sqlalchemy import Engine, inspect, text

from datapatterns.change_log import ChangeLog
from datapatterns.errors import (
    ForeignSnapshotError,
    ViewChangedError,
    ViewMissingError,
    ViewNotPopulatedError,
)
from datapatterns.materialized_view import (
    Full,
    MaterializedView,
)
from datapatterns.sql.migrating import upgrade
from tests.fixtures.view_tables import (
    STOCK,
    Line,
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
        " VALUES (''999999999999'', 1, 1, 1, 9999)', replace(log_name, 'log', 'rows'))"
        " FROM datapatterns.captured_table"
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
