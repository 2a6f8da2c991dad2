"""Rows are written past an index: it says so instead of missing them."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from datapatterns.errors import IndexDetachedError, IsolationLevelError
from datapatterns.index_table import IndexTable
from tests.fixtures.index_tables import assert_agrees, build, order_line, run, tables

pytestmark = pytest.mark.postgres

by_product = IndexTable("line_by_product", on=[order_line.c.product_id])

READS: list[Callable[[Connection], Any]] = [
    lambda conn: by_product.lookup(conn, 1),
    lambda conn: by_product.lookup(conn, 1, miss="scan"),
    lambda conn: by_product.lookup_many(conn, [1, 2]),
    by_product.lookup_range,
    by_product.keys,
]


@pytest.fixture(autouse=True)
def indexed(engine: Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        run(conn, "INSERT INTO order_line VALUES (1, 1, 'a')")
    build(engine, by_product)


@pytest.mark.parametrize(
    "replace",
    [
        (
            "DROP TABLE order_line CASCADE;"
            "CREATE TABLE order_line (id int PRIMARY KEY, product_id int, note text)"
        ),
        (
            "ALTER TABLE order_line RENAME TO order_line_before;"
            "CREATE TABLE order_line (LIKE order_line_before INCLUDING ALL)"
        ),
        "CREATE TEMPORARY TABLE order_line (id int PRIMARY KEY, product_id int, note text)",
    ],
)
def test_an_index_is_not_that_of_a_table_that_took_the_place_of_its_own(
    conn: Connection, replace: str
) -> None:
    conn.exec_driver_sql(replace)
    run(conn, "INSERT INTO order_line VALUES (1, 1, 'a'), (2, 1, 'b')")

    for refused in (
        *READS,
        by_product.create,
        by_product.backfill,
        by_product.activate,
        by_product.verify,
        by_product.repair,
    ):
        with pytest.raises(IndexDetachedError, match="table order_line") as raised:
            refused(conn)
        assert raised.value.index == "line_by_product"


def test_an_index_follows_its_table_when_it_is_built_anew(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE order_line RENAME TO order_line_before")
        run(conn, "CREATE TABLE order_line (LIKE order_line_before INCLUDING ALL)")
        run(conn, "INSERT INTO order_line VALUES (1, 1, 'a'), (2, 1, 'b')")
        assert by_product.drop(conn)
    build(engine, by_product)

    with engine.begin() as conn:
        run(conn, "INSERT INTO order_line_before VALUES (3, 1, 'not in this one')")
        assert [row.id for row in by_product.lookup(conn, 1)] == [1, 2]


@pytest.mark.parametrize("triggers", ["ALL", "USER"])
def test_rows_written_while_triggers_were_disabled_are_not_missed(
    conn: Connection, triggers: str
) -> None:
    run(conn, f"ALTER TABLE order_line DISABLE TRIGGER {triggers}")
    run(conn, "INSERT INTO order_line VALUES (2, 1, 'unseen')")
    for read in READS:
        with pytest.raises(IndexDetachedError, match="repair"):
            read(conn)
    run(conn, f"ALTER TABLE order_line ENABLE TRIGGER {triggers}")

    for refused in (*READS, by_product.backfill, by_product.activate):
        with pytest.raises(IndexDetachedError, match="repair"):
            refused(conn)
    assert by_product.verify(conn).missing == 1

    assert by_product.repair(conn).clean
    run(conn, "SET LOCAL session_replication_role = replica")
    run(conn, "INSERT INTO order_line VALUES (3, 1, 'seen')")
    assert [row.id for row in by_product.lookup(conn, 1)] == [1, 2, 3]
    assert_agrees(conn, by_product)


def test_an_index_follows_a_table_that_is_renamed(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE order_line RENAME TO line_of_order")
        run(conn, "INSERT INTO line_of_order VALUES (2, 1, 'b')")
        run(conn, "UPDATE line_of_order SET product_id = 2 WHERE id = 1")
        run(conn, "ALTER TABLE line_of_order RENAME TO order_line")

        assert_agrees(conn, by_product)


def test_what_must_be_done_as_a_whole_is_refused_in_autocommit_mode(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        for refused in (
            by_product.create,
            by_product.backfill,
            by_product.activate,
            by_product.repair,
            by_product.drop,
        ):
            with pytest.raises(IsolationLevelError, match="not autocommit"):
                refused(conn)

        assert by_product.verify(conn).clean
        assert len(by_product.lookup(conn, 1)) == 1
