"""Which baskets held this product? The receipts are kept by basket."""

from collections.abc import Iterator

from sqlalchemy import select

from datapatterns.index_table import IndexTable
from datapatterns_grocer.model import LineRow
from datapatterns_grocer.screen import milliseconds
from datapatterns_grocer.stage import Stage
from datapatterns_grocer.stopwatch import median_seconds
from datapatterns_grocer.truth import Check, compare

BY_PRODUCT = IndexTable(
    "line_by_product", on=[LineRow.product_id], include=[LineRow.quantity, LineRow.cents]
)
CHUNK_ROWS = 20_000
PAGE_ROWS = 10_000
COLUMNS = (LineRow.basket_id, LineRow.quantity, LineRow.cents)


def play(stage: Stage) -> None:
    """Build the index while the table could be written to, and look the best-seller up."""
    stage.screen.heading(
        "Index table", "Receipts are kept by basket. Which baskets held this product?"
    )
    with stage.layer.engine.begin() as conn:
        BY_PRODUCT.create(conn)
    _backfill(stage)
    with stage.layer.engine.begin() as conn:
        report = BY_PRODUCT.activate(conn)
    stage.screen.say(
        f"built in chunks while others could write; verified both ways: {report.rows:,} rows,"
        f" {report.missing} missing, {report.orphaned} orphaned"
    )
    _compare_with_a_scan(stage)


def verify(stage: Stage) -> Iterator[Check]:
    """Compare every index row with the files."""
    yield compare(
        "index table: the baskets of every product",
        derived=_entries(stage),
        truth=stage.dataset.rows("SELECT product_id, basket_id, quantity, cents FROM sold"),
    )


def _backfill(stage: Stage) -> None:
    done, rows_done = False, 0
    with stage.screen.progress("backfilling", total=stage.dataset.count("lines")) as advance:
        while not done:
            with stage.layer.engine.begin() as conn:
                progress = BY_PRODUCT.backfill(conn, limit=CHUNK_ROWS)
            advance(progress.rows_done - rows_done)
            done, rows_done = progress.done, progress.rows_done


def _compare_with_a_scan(stage: Stage) -> None:
    ((product_id, baskets),) = stage.dataset.rows(
        "SELECT product_id, count(*) FROM sold GROUP BY ALL ORDER BY abs(count(*) - 20), 1 LIMIT 1"
    )
    scan = select(*COLUMNS).where(LineRow.product_id == product_id)
    with stage.layer.engine.connect() as conn:
        scanned = median_seconds(lambda: conn.execute(scan).all())
        looked_up = median_seconds(lambda: BY_PRODUCT.lookup(conn, product_id))
        found = BY_PRODUCT.lookup(conn, product_id)
        agree = sorted(row.basket_id for row in found) == sorted(
            row.basket_id for row in conn.execute(scan)
        )
    assert agree
    assert len(found) == baskets
    stage.screen.table(
        [f"the {baskets} baskets with product {product_id}", "takes"],
        [["scan of the receipts", milliseconds(scanned)], ["index table", milliseconds(looked_up)]],
    )
    stage.screen.say(f"the index table is {scanned / looked_up:,.0f} times as fast")


def _entries(stage: Stage) -> Iterator[tuple[int, int, int, int]]:
    with stage.layer.engine.connect() as conn:
        page = BY_PRODUCT.keys(conn, limit=PAGE_ROWS)
        while page:
            for entry in page:
                quantity, cents = entry.included["quantity"], entry.included["cents"]
                yield entry.key[0], entry.primary_key[0], quantity, cents
            page = BY_PRODUCT.keys(conn, limit=PAGE_ROWS, after=page[-1])
