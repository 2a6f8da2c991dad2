"""Move a table on by statements, 10,000 events a commit, beside the same SQL by hand."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Table,
    case,
    cast,
    func,
    select,
)
from sqlalchemy.orm import Mapped, mapped_column

from benchmarks.baskets import Driver, ItemRemoved, ItemScanned, driver
from benchmarks.interleaving import Claim, Contestant
from benchmarks.sales import PRODUCTS, Base, SalesByProduct, fill_log
from datapatterns import DataLayer
from datapatterns.cqrs import AnyProjection, Projections, SetProjection, upsert

EVENTS: Final = 200_000
PAGE_EVENTS: Final = 10_000

_TABLES: Final = """
CREATE TABLE by_hand (LIKE sales_in_sql INCLUDING ALL);
CREATE TABLE checkpoint (position bigint NOT NULL);
INSERT INTO checkpoint VALUES (0);
"""
_PAGE: Final = """
INSERT INTO by_hand AS sales (product_id, quantity, cents)
SELECT product_id, sum(sign * quantity), sum(sign * cents)
  FROM (SELECT (e.data ->> 'product_id')::bigint AS product_id,
               (e.data ->> 'quantity')::bigint AS quantity,
               (e.data ->> 'cents')::bigint AS cents,
               CASE t.name WHEN 'benchmark.item_removed' THEN -1 ELSE 1 END AS sign
          FROM datapatterns.event e JOIN datapatterns.event_type t ON t.id = e.type_id
         WHERE e.position > %b AND e.position <= %b) happened
 GROUP BY product_id ORDER BY product_id
ON CONFLICT (product_id) DO UPDATE SET quantity = sales.quantity + excluded.quantity,
                                       cents = sales.cents + excluded.cents
"""


class SalesInSql(Base):
    """How much was sold of a product."""

    __tablename__ = "sales_in_sql"

    product_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    quantity: Mapped[int] = mapped_column(BigInteger, default=0)
    cents: Mapped[int] = mapped_column(BigInteger, default=0)


class SalesBySql(
    SetProjection,
    into=SalesInSql,
    version=1,
    reads=(ItemScanned, ItemRemoved),
    additive=True,
):
    """Adds them up where they are."""

    def statements(self, events: FromClause, tables: Mapping[type, Table[Any]]) -> Executable:
        """Add what was scanned, and take away what was removed."""

        def number(name: str) -> ColumnElement[int]:
            return cast(events.c.data[name].as_string(), BigInteger)

        sign = case((events.c.event_type == "benchmark.item_removed", -1), else_=1)
        product = number("product_id").label("product_id")
        sums = select(
            product,
            func.sum(sign * number("quantity")).label("quantity"),
            func.sum(sign * number("cents")).label("cents"),
        ).group_by(product)
        return upsert(tables[SalesInSql], sums, add=["quantity", "cents"])


@contextmanager
def claim() -> Iterator[Claim]:
    """From the first event to the last; the tables are emptied before, outside of the time."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        url = layer.engine.url
        Base.metadata.create_all(layer.engine)
        conn = stack.enter_context(driver(url, autocommit=True))
        conn.execute(_TABLES)
        fill_log(layer, EVENTS)
        yield Claim(
            f"add {EVENTS:,} events up in {PRODUCTS:,} rows, {PAGE_EVENTS:,} a commit",
            "events",
            [
                Contestant(
                    "SetProjection", "ours", _ours(layer, SalesBySql), _again(url, "sales_in_sql")
                ),
                Contestant(
                    "psycopg: the same SQL",
                    "limit",
                    partial(_by_hand, conn),
                    partial(_by_hand_again, conn),
                ),
                Contestant(
                    "Projection: folded in Python",
                    "rival",
                    _ours(layer, SalesByProduct),
                    _again(url, "product_sales"),
                ),
            ],
        )
        _check(conn)


def _ours(layer: DataLayer, projection: type[AnyProjection]) -> Callable[[], int]:
    projections = Projections(layer.events)

    def run() -> int:
        return projections.catch_up(layer.engine, projection, page_events=PAGE_EVENTS).events

    return run


def _again(url: URL, table: str) -> Callable[[], None]:
    def again() -> None:
        with driver(url, autocommit=True) as conn:
            conn.execute(f"TRUNCATE {table}")
            conn.execute("UPDATE datapatterns.projection_shard SET position = 0")
            conn.execute("CHECKPOINT")

    return again


def _by_hand(conn: Driver) -> int:
    ((last,),) = conn.execute("SELECT max(position) FROM datapatterns.event").fetchall()
    with conn.cursor(binary=True) as cursor:
        while True:
            with conn.transaction():
                cursor.execute("SELECT position FROM checkpoint FOR UPDATE", prepare=True)
                ((after,),) = cursor.fetchall()
                if after >= last:
                    return EVENTS
                end = min(after + PAGE_EVENTS, last)
                cursor.execute(_PAGE, [after, end], prepare=True)
                cursor.execute("UPDATE checkpoint SET position = %b", [end], prepare=True)


def _by_hand_again(conn: Driver) -> None:
    conn.execute("TRUNCATE by_hand")
    conn.execute("UPDATE checkpoint SET position = 0")
    conn.execute("CHECKPOINT")


def _check(conn: Driver) -> None:
    by_hand, *ours = (
        conn.execute(f"SELECT * FROM {table} ORDER BY product_id").fetchall()
        for table in ("by_hand", "sales_in_sql", "product_sales")
    )
    assert len(by_hand) == PRODUCTS
    assert all(one == by_hand for one in ours)
