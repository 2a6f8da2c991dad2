"""Indexes of mode async: behind their writers, never wrong, right once changes were taken in."""

from typing import Literal

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, Text, func

from datapatterns.change_log import ChangeLog
from datapatterns.errors import (
    IndexBehindError,
    IndexDefinitionError,
    IndexDetachedError,
    IndexModeError,
    IndexNotReadyError,
    TransactionInUseError,
)
from datapatterns.index_table import CaughtUp, Indexes, IndexTable
from tests.fixtures.index_tables import (
    assert_agrees,
    backfill,
    build,
    customer,
    order_line,
    run,
    tables,
)

pytestmark = pytest.mark.postgres

visit = Table(
    "visit",
    MetaData(),
    Column("day", Integer, primary_key=True),
    Column("id", Integer, primary_key=True),
    Column("page", Text),
    postgresql_partition_by="RANGE (day)",
)
by_product = IndexTable(
    "line_by_product", on=[order_line.c.product_id], include=[order_line.c.note], mode="async"
)
by_email = IndexTable(
    "customer_by_email",
    on=[func.lower(customer.c.email)],
    include=[customer.c.balance],
    where=customer.c.name.is_not(None),
    mode="async",
)


@pytest.fixture(autouse=True)
def rows_from_before(engine: Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        run(conn, "INSERT INTO order_line SELECT g, g, 'n' || g FROM generate_series(1, 20) g")


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in statements:
            run(conn, statement)


def catch_up(engine: Engine, index: IndexTable = by_product) -> CaughtUp:
    with engine.begin() as conn:
        done = index.catch_up(conn)
    assert done is not None
    return done


def entries(conn: Connection, index: str = "line_by_product") -> int:
    found = conn.exec_driver_sql(f"SELECT count(*) FROM datapatterns.{index}").scalar_one()  # noqa: S608
    return int(found)


def found(engine: Engine, key: int) -> list[int]:
    with engine.connect() as conn:
        return [row.id for row in by_product.lookup(conn, key)]


def test_rows_from_before_come_by_a_backfill_and_changes_by_catching_up(engine: Engine) -> None:
    build(engine, by_product)
    assert found(engine, 5) == [5]

    execute(
        engine,
        "INSERT INTO order_line VALUES (21, 5, 'new')",
        "UPDATE order_line SET product_id = 5 WHERE id = 6",
        "UPDATE order_line SET note = 'other' WHERE id = 7",
        "DELETE FROM order_line WHERE id = 8",
        "UPDATE order_line SET id = 109 WHERE id = 9",
    )
    assert found(engine, 5) == [5], "what was not taken in yet is missing"
    assert found(engine, 6) == found(engine, 8) == found(engine, 9) == [], "and never wrong"

    done = catch_up(engine)

    assert done == CaughtUp(rows_changed=6, entries_written=4, entries_removed=3, is_rebuilt=False)
    assert found(engine, 5) == [5, 6, 21]
    assert found(engine, 9) == [109]
    with engine.connect() as conn:
        assert assert_agrees(conn, by_product) == entries(conn) == 20


def test_catching_up_twice_changes_nothing(engine: Engine) -> None:
    build(engine, by_product)
    execute(engine, "UPDATE order_line SET product_id = product_id + 1")

    catch_up(engine)

    assert catch_up(engine) == CaughtUp(0, 0, 0, is_rebuilt=False)


def test_equal_values_that_differ_and_predicates_are_followed(engine: Engine) -> None:
    execute(
        engine, "INSERT INTO customer VALUES (1, 1, 'Ann@x', 'A', 1.0), (1, 2, 'ann@x', NULL, 2)"
    )
    build(engine, by_email)

    execute(
        engine,
        "UPDATE customer SET balance = 1.00 WHERE id = 1",
        "UPDATE customer SET name = 'B' WHERE id = 2",
        "INSERT INTO customer VALUES (2, 1, NULL, 'C', 3), (2, 2, 'ANN@X', 'D', 'NaN')",
    )
    catch_up(engine, by_email)

    with engine.connect() as conn:
        assert assert_agrees(conn, by_email) == 3
        included = [str(entry.included["balance"]) for entry in by_email.covering(conn).entries]
    assert included == ["1.00", "2", "NaN"]


def test_a_truncation_leaves_nothing_behind(engine: Engine) -> None:
    build(engine, by_product)
    execute(engine, "TRUNCATE order_line", "INSERT INTO order_line VALUES (1, 9, 'after')")

    with engine.connect() as conn, pytest.raises(IndexBehindError):
        by_product.verify(conn)
    assert found(engine, 1) == []
    done = catch_up(engine)

    assert done.is_rebuilt
    assert found(engine, 9) == [1]
    with engine.connect() as conn:
        assert assert_agrees(conn, by_product) == entries(conn) == 1


def test_rows_copied_in_are_found(engine: Engine) -> None:
    build(engine, by_product)
    with engine.begin() as conn:
        driver = conn.connection.driver_connection
        assert driver is not None
        with driver.cursor() as cursor, cursor.copy("COPY order_line FROM STDIN") as copy:
            for n in range(100, 2_200):
                copy.write_row((n, 3, f"copied {n}"))

    done = catch_up(engine)

    assert done.entries_written == done.rows_changed == 2_100
    with engine.connect() as conn:
        assert assert_agrees(conn, by_product) == 2_120


def test_what_was_rolled_back_is_not_taken_in(engine: Engine) -> None:
    build(engine, by_product)
    with engine.begin() as conn:
        run(conn, "UPDATE order_line SET product_id = 7 WHERE id = 1")
        savepoint = conn.begin_nested()
        run(conn, "UPDATE order_line SET product_id = 8 WHERE id = 2")
        savepoint.rollback()
    with engine.begin() as conn:
        run(conn, "DELETE FROM order_line")
        conn.rollback()

    assert catch_up(engine).rows_changed == 1
    assert found(engine, 7) == [1, 7]


def test_a_verifier_leaves_out_what_is_pending_and_sees_what_is_wrong(engine: Engine) -> None:
    build(engine, by_product)
    execute(
        engine,
        "UPDATE order_line SET product_id = 100 WHERE id IN (1, 2)",
        "DELETE FROM datapatterns.line_by_product WHERE id = 3",
        "INSERT INTO datapatterns.line_by_product VALUES (77, 4, 'nobody''s')",
        "UPDATE datapatterns.line_by_product SET note = 'wrong' WHERE id = 5",
    )

    with engine.connect() as conn:
        report = by_product.verify(conn)

    assert (report.pending, report.missing, report.orphaned, report.different) == (2, 1, 1, 1)
    with engine.begin() as conn:
        assert by_product.repair(conn).clean
    with engine.connect() as conn:
        assert assert_agrees(conn, by_product) == entries(conn) == 20


def test_index_rows_alone_say_how_old_they_are(engine: Engine) -> None:
    build(engine, by_product)
    with engine.connect() as conn:
        assert by_product.covering(conn, 5).behind_seconds == 0.0
    execute(engine, "UPDATE order_line SET note = 'changed' WHERE id = 5")

    with engine.connect() as conn:
        covered = by_product.covering(conn, 5)
        checked = by_product.keys(conn, 5)

    assert covered.entries[0].included == {"note": "n5"}
    assert covered.behind_seconds > 0.0
    assert checked[0].included == {"note": "changed"}


def test_index_rows_of_rows_that_have_gone_are_not_shown(engine: Engine) -> None:
    build(engine, by_product)
    execute(engine, "DELETE FROM order_line WHERE id = 5")

    with engine.connect() as conn:
        assert by_product.keys(conn, 5) == []
        assert by_product.lookup_range(conn, 5) == []
        assert by_product.lookup_many(conn, [5]) == {5: []}
        assert len(by_product.covering(conn, 5).entries) == 1


def test_while_it_is_built_it_is_not_read(engine: Engine) -> None:
    with engine.begin() as conn:
        by_product.create(conn)
    with engine.connect() as conn:
        with pytest.raises(IndexNotReadyError):
            by_product.lookup(conn, 5)
        assert [row.id for row in by_product.lookup(conn, 5, miss="scan")] == [5]


def test_changes_between_the_chunks_of_a_backfill_are_not_lost(engine: Engine) -> None:
    with engine.begin() as conn:
        by_product.create(conn)
    for first in (2, 7, 12):
        with engine.begin() as conn:
            by_product.backfill(conn, limit=5)
        execute(
            engine,
            f"UPDATE order_line SET product_id = 100 WHERE id IN ({first}, {first + 6})",  # noqa: S608
            f"DELETE FROM order_line WHERE id IN ({first + 1}, {first + 7})",  # noqa: S608
        )
        catch_up(engine)
    backfill(engine, by_product)
    with engine.begin() as conn:
        assert by_product.activate(conn).clean
    with engine.connect() as conn:
        assert assert_agrees(conn, by_product) == entries(conn)


def test_a_chunk_locks_no_row(engine: Engine) -> None:
    with engine.begin() as conn:
        by_product.create(conn)
    with engine.connect() as builder, engine.begin() as writer:
        run(writer, "SET LOCAL lock_timeout = '1s'")
        by_product.backfill(builder, limit=10)
        run(writer, "UPDATE order_line SET product_id = 99 WHERE id < 10")
        builder.commit()
    backfill(engine, by_product)
    with engine.begin() as conn:
        assert by_product.activate(conn).clean
    assert len(found(engine, 99)) == 9


def test_what_has_written_cannot_catch_up(engine: Engine) -> None:
    build(engine, by_product)
    with engine.connect() as conn:
        run(conn, "DELETE FROM order_line")
        with pytest.raises(TransactionInUseError):
            by_product.catch_up(conn)


def test_a_second_worker_leaves_an_index_to_the_first(engine: Engine) -> None:
    build(engine, by_product)
    execute(engine, "DELETE FROM order_line WHERE id = 1")
    with engine.connect() as first, engine.begin() as second:
        assert by_product.catch_up(first) is not None
        assert by_product.catch_up(second, skip_locked=True) is None


def test_unique_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(IndexModeError, match="mode='local', which refuses the second one"):
        IndexTable("i", on=[customer.c.email], unique=True, mode="async")


# -- what is pending is not all --------------------------------------------------------------------


def test_a_consumer_that_was_removed_is_noticed_and_repaired(engine: Engine) -> None:
    build(engine, by_product)
    with engine.begin() as conn:
        ChangeLog().forget_consumer(conn, "index_table:line_by_product")
    execute(engine, "UPDATE order_line SET product_id = 5 WHERE id = 6")
    with engine.begin() as conn:
        ChangeLog().collect_garbage(conn)

    with engine.connect() as conn, pytest.raises(IndexDetachedError):
        by_product.lookup(conn, 999)
    with engine.begin() as conn, pytest.raises(IndexDetachedError):
        by_product.catch_up(conn)
    with engine.begin() as conn:
        assert by_product.repair(conn).clean
    assert found(engine, 5) == [5, 6]


def test_a_consumer_that_was_removed_and_added_again_reads_all_anew(engine: Engine) -> None:
    build(engine, by_product)
    log = ChangeLog()
    with engine.begin() as conn:
        log.forget_consumer(conn, "index_table:line_by_product")
    execute(engine, "UPDATE order_line SET product_id = 5 WHERE id = 6")
    with engine.begin() as conn:
        log.collect_garbage(conn)
        name = log.capture(conn, order_line, [])
        log.register_consumer(conn, "index_table:line_by_product", "index_table", log_names=[name])

    with engine.connect() as conn:
        assert by_product.lag(conn).must_rebuild
    assert catch_up(engine).is_rebuilt
    assert found(engine, 5) == [5, 6]
    assert found(engine, 6) == []


def test_one_whose_changes_were_given_up_while_it_stood_still_reads_all_anew(
    engine: Engine,
) -> None:
    build(engine, by_product)
    execute(engine, "UPDATE order_line SET product_id = product_id + 1")
    with engine.begin() as conn:
        assert ChangeLog().restart_laggards(conn, pending_rows_max=3)
    with engine.begin() as conn:
        assert ChangeLog().collect_garbage(conn) > 0

    assert catch_up(engine).is_rebuilt
    with engine.connect() as conn:
        assert assert_agrees(conn, by_product) == 20
        assert by_product.lag(conn).pending_rows == 0


def test_triggers_that_were_disabled_are_noticed_and_what_was_missed_is_read(
    engine: Engine,
) -> None:
    build(engine, by_product)
    execute(
        engine,
        "ALTER TABLE order_line DISABLE TRIGGER ALL",
        "UPDATE order_line SET product_id = 5 WHERE id = 6",
        "ALTER TABLE order_line ENABLE TRIGGER ALL",
    )

    with engine.connect() as conn, pytest.raises(IndexDetachedError):
        by_product.lookup(conn, 999)
    assert catch_up(engine).is_rebuilt
    with engine.begin() as conn:
        assert by_product.repair(conn).clean
    assert found(engine, 5) == [5, 6]
    assert not catch_up(engine).is_rebuilt


def test_another_table_of_that_name_is_not_taken_for_the_first(engine: Engine) -> None:
    build(engine, by_product)
    execute(
        engine,
        "ALTER TABLE order_line RENAME TO order_line_before",
        "CREATE TABLE order_line (LIKE order_line_before INCLUDING ALL)",
    )

    with engine.connect() as conn, pytest.raises(IndexDetachedError):
        by_product.lookup(conn, 5)
    for attempt in (by_product.catch_up, by_product.repair, by_product.verify):
        with engine.begin() as conn, pytest.raises(IndexDetachedError):
            attempt(conn)


def test_dropping_it_ends_the_log_that_nobody_else_reads(engine: Engine) -> None:
    build(engine, by_product)
    with engine.begin() as conn:
        assert by_product.drop(conn)
        assert not ChangeLog().status(conn).consumers
        assert not ChangeLog().status(conn).logs
        assert not by_product.drop(conn)
    build(engine, by_product)


def test_dropping_it_leaves_the_log_to_others(engine: Engine) -> None:
    build(engine, by_product)
    by_note = IndexTable("line_by_note", on=[order_line.c.note], mode="async")
    build(engine, by_note)
    with engine.begin() as conn:
        assert by_note.drop(conn)
        assert list(ChangeLog().status(conn).consumers) == ["index_table:line_by_product"]
    execute(engine, "UPDATE order_line SET product_id = 5 WHERE id = 6")
    catch_up(engine)
    assert found(engine, 5) == [5, 6]


def test_a_table_whose_changes_would_be_missed_is_refused(engine: Engine) -> None:
    execute(engine, "ALTER TABLE order_line SET UNLOGGED")
    with engine.begin() as conn:
        with pytest.raises(IndexDefinitionError, match="unlogged"):
            by_product.create(conn)
        run(conn, "SELECT 1")


# -- partitions ------------------------------------------------------------------------------------


@pytest.fixture
def visits(engine: Engine) -> IndexTable:
    """An index of a table with partitions, for which nobody has said how it is kept."""
    visit.create(engine)
    execute(
        engine,
        "CREATE TABLE visit_1 PARTITION OF visit FOR VALUES FROM (0) TO (10)",
        "INSERT INTO visit VALUES (1, 1, '/'), (1, 2, '/a')",
    )
    index = IndexTable("visit_by_page", on=[visit.c.page])
    assert index.explain().mode == "async"
    assert "partitioned" in (index.explain().chosen_because or "")
    build(engine, index)
    return index


def pages(engine: Engine, index: IndexTable, page: str = "/") -> list[tuple[int, int]]:
    with engine.connect() as conn:
        assert_agrees(conn, index)
        return [(row.day, row.id) for row in index.lookup(conn, page)]


def test_rows_of_partitions_are_followed_also_when_they_move(
    engine: Engine, visits: IndexTable
) -> None:
    execute(
        engine,
        "CREATE TABLE visit_2 PARTITION OF visit FOR VALUES FROM (10) TO (20)",
        "INSERT INTO visit VALUES (11, 1, '/')",
    )
    catch_up(engine, visits)
    with engine.begin() as conn:
        ChangeLog().recapture(conn)
    catch_up(engine, visits)
    execute(
        engine,
        "UPDATE visit SET day = 12 WHERE day = 1 AND id = 1",
        "INSERT INTO visit_1 VALUES (3, 3, '/')",
        "MERGE INTO visit v USING (VALUES (1, 2)) AS s (day, id) ON v.day = s.day AND v.id = s.id"
        " WHEN MATCHED THEN UPDATE SET day = 13, page = '/'",
    )
    catch_up(engine, visits)

    assert pages(engine, visits) == [(3, 3), (11, 1), (12, 1), (13, 2)]


def test_a_partition_that_comes_with_rows_or_goes_is_noticed(
    engine: Engine, visits: IndexTable
) -> None:
    execute(
        engine,
        "CREATE TABLE visit_2 (LIKE visit INCLUDING ALL)",
        "INSERT INTO visit_2 VALUES (11, 1, '/'), (12, 1, '/a')",
        "ALTER TABLE visit ATTACH PARTITION visit_2 FOR VALUES FROM (10) TO (20)",
    )
    with engine.connect() as conn:
        assert visits.lag(conn).must_rebuild
    assert catch_up(engine, visits).is_rebuilt

    # Without triggers of its own yet, so it is read each time.
    execute(engine, "INSERT INTO visit_2 VALUES (13, 1, '/')")
    assert catch_up(engine, visits).is_rebuilt
    with engine.begin() as conn:
        assert len(visits.lookup(conn, "/")) == 3
        [report] = Indexes([visits]).status(conn)
        assert "triggers of visit_2 are missing" in (report.problem or "")
        visits.repair(conn)
    assert pages(engine, visits) == [(1, 1), (11, 1), (13, 1)]
    execute(engine, "INSERT INTO visit_2 VALUES (14, 1, '/')")
    assert not catch_up(engine, visits).is_rebuilt
    assert pages(engine, visits) == [(1, 1), (11, 1), (13, 1), (14, 1)]

    execute(engine, "ALTER TABLE visit DETACH PARTITION visit_1")
    assert catch_up(engine, visits).is_rebuilt
    assert pages(engine, visits) == [(11, 1), (13, 1), (14, 1)]


def test_a_partitioned_table_has_no_index_that_its_writers_keep(engine: Engine) -> None:
    visit.create(engine)
    index = IndexTable("visit_by_page", on=[visit.c.page], mode="local")

    with engine.begin() as conn, pytest.raises(IndexDefinitionError, match="mode='async'"):
        index.create(conn)


@pytest.mark.parametrize("mode", ["local", "async"])
def test_a_table_that_others_inherit_from_is_refused(
    engine: Engine, mode: Literal["local", "async"]
) -> None:
    execute(engine, "CREATE TABLE special_line () INHERITS (order_line)")
    index = IndexTable("line_by_product", on=[order_line.c.product_id], mode=mode)

    with engine.begin() as conn, pytest.raises(IndexDefinitionError, match="inherit"):
        index.create(conn)
