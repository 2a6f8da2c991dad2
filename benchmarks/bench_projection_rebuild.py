"""Rebuild a table from a million events beside the live one, and swap, beside the same by hand."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Final

from sqlalchemy import URL

from benchmarks.baskets import DECODERS, Driver, ItemScanned, driver
from benchmarks.interleaving import Claim, Contestant
from benchmarks.sales import PRODUCTS, Base, ProductSales, SalesByProduct, fill_log
from datapatterns import DataLayer
from datapatterns.cqrs import Projection, ProjectionProgress, Projections

EVENTS: Final = int(os.environ.get("DATAPATTERNS_REBUILD_EVENTS", "1_000_000"))
PAGE_EVENTS: Final = 5_000

_PAGE: Final = """
SELECT e.position, t.name, e.data::text
  FROM datapatterns.event e JOIN datapatterns.event_type t ON t.id = e.type_id
 WHERE e.position > %b ORDER BY e.position LIMIT %b
"""
_CREATE: Final = "CREATE TABLE next_by_hand (LIKE product_sales)"
_COPY: Final = "COPY next_by_hand (product_id, quantity, cents) FROM STDIN"
_SWAP: Final = """
ALTER TABLE next_by_hand ADD PRIMARY KEY (product_id);
DROP TABLE IF EXISTS by_hand;
ALTER TABLE next_by_hand RENAME TO by_hand;
"""


class SalesAgain(SalesByProduct, into=ProductSales, version=2, name="sales_by_product"):
    """The same in another version: the two take each other's place."""


@contextmanager
def claim() -> Iterator[Claim]:
    """From the first event to the swap; one process, one thread."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        Base.metadata.create_all(layer.engine)
        fill_log(layer, EVENTS)
        projections = Projections(layer.events)
        projections.rebuild(layer.engine, SalesByProduct)
        yield Claim(
            f"rebuild {PRODUCTS:,} rows from {EVENTS:,} events and swap",
            "events",
            [
                Contestant("Projections.rebuild", "ours", _ours(layer, projections)),
                Contestant("psycopg: folded, COPY, renamed", "limit", _limit(layer.engine.url)),
            ],
        )
        with driver(layer.engine.url, autocommit=True) as conn:
            _check(conn)


def _ours(layer: DataLayer, projections: Projections) -> Callable[[], int]:
    versions: Iterator[type[Projection]] = cycle([SalesAgain, SalesByProduct])

    def run() -> int:
        told: list[ProjectionProgress] = []
        projections.rebuild(
            layer.engine, next(versions), page_events=PAGE_EVENTS, on_page=told.append
        )
        assert sum(page.events for page in told) == EVENTS
        return EVENTS

    return run


def _limit(url: URL) -> Callable[[], int]:
    def run() -> int:
        with driver(url, autocommit=True) as conn:
            conn.execute(_CREATE)
            figures, count = _folded(conn)
            with conn.cursor() as cursor, cursor.copy(_COPY) as copy:
                for product, (quantity, cents) in figures.items():
                    copy.write_row((product, quantity, cents))
            with conn.transaction():
                conn.execute(_SWAP)
        return count

    return run


def _folded(conn: Driver) -> tuple[dict[int, list[int]], int]:
    figures: dict[int, list[int]] = {}
    after = count = 0
    with conn.cursor(binary=True) as cursor:
        while rows := cursor.execute(_PAGE, [after, PAGE_EVENTS], prepare=True).fetchall():
            for _, name, data in rows:
                event = DECODERS[name].decode(data)
                sign = 1 if isinstance(event, ItemScanned) else -1
                row = figures.get(event.product_id)
                if row is None:
                    row = figures[event.product_id] = [0, 0]
                row[0] += sign * event.quantity
                row[1] += sign * event.cents
            after, count = rows[-1][0], count + len(rows)
    return figures, count


def _check(conn: Driver) -> None:
    ours, by_hand = (
        conn.execute(f"SELECT * FROM {table} ORDER BY product_id").fetchall()
        for table in ("product_sales", "by_hand")
    )
    assert len(ours) == PRODUCTS
    assert ours == by_hand
