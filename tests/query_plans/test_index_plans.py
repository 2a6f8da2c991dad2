"""What is promised of plans, counted in scans of whole tables by the server itself."""

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.index_table import IndexTable
from tests.fixtures.index_tables import build, order_line, run, tables

pytestmark = pytest.mark.postgres

by_product = IndexTable(
    "line_by_product", on=[order_line.c.product_id], include=[order_line.c.note]
)


@pytest.fixture(autouse=True)
def many_rows(engine: Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        run(conn, "INSERT INTO order_line SELECT g, g % 5000 FROM generate_series(1, 20000) g")
    build(engine, by_product, limit=10_000)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        run(conn, "VACUUM ANALYZE order_line")


def whole_reads(conn: Connection, table: str) -> int:
    """Return how often this session has read all of ``table`` lately."""
    counted = conn.scalar(
        text("SELECT pg_stat_get_xact_numscans(CAST(:t AS regclass))"), {"t": table}
    )
    return int(counted or 0)


def test_no_look_up_reads_a_whole_table(conn: Connection) -> None:
    before = whole_reads(conn, "order_line"), whole_reads(conn, "datapatterns.line_by_product")

    rows = by_product.lookup(conn, 77)
    by_product.lookup(conn, 77, limit=2, after=(77,))
    by_product.lookup_many(conn, [1, 2, 3])
    by_product.lookup_range(conn, low=5, high=7)
    by_product.keys(conn, 5)
    by_product.keys(conn, limit=10, after=by_product.keys(conn, 5)[0])

    assert len(rows) == 4
    after = whole_reads(conn, "order_line"), whole_reads(conn, "datapatterns.line_by_product")
    assert after == before


def test_a_bulk_statement_does_not_slow_down_the_small_ones_after_it(conn: Connection) -> None:
    before = whole_reads(conn, "datapatterns.line_by_product")
    # The trigger's plans are made for the session by its first statement.
    run(conn, "DELETE FROM order_line WHERE id <= 15000")
    run(conn, "UPDATE order_line SET product_id = product_id + 1 WHERE id > 15000")

    run(conn, "DELETE FROM order_line WHERE id = 15001")
    run(conn, "UPDATE order_line SET product_id = 1 WHERE id = 15002")

    assert whole_reads(conn, "datapatterns.line_by_product") == before
