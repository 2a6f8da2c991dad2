"""What the benchmarks of read models share: sales of a thousand products, and a log of them."""

from typing import Final

from sqlalchemy import BigInteger, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.baskets import MEMO, ItemRemoved, ItemScanned
from datapatterns import DataLayer
from datapatterns.cqrs import Projection, on
from datapatterns.event_sourcing import ImportedEvent, RecordedEvent, StreamId

PRODUCTS: Final = 1_000
EVENTS_PER_STREAM: Final = 100
CHUNK_EVENTS: Final = 20_000


class Base(DeclarativeBase):
    """The tables of these benchmarks."""


class ProductSales(Base):
    """How much was sold of a product."""

    __tablename__ = "product_sales"

    product_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    quantity: Mapped[int] = mapped_column(BigInteger, default=0)
    cents: Mapped[int] = mapped_column(BigInteger, default=0)


class SalesByProduct(Projection, into=ProductSales, version=1):
    """Folds them in Python."""

    @on(ItemScanned, key=lambda e, _: e.product_id)
    def _(self, row: ProductSales, scanned: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += scanned.quantity
        row.cents += scanned.cents

    @on(ItemRemoved, key=lambda e, _: e.product_id)
    def _(self, row: ProductSales, removed: ItemRemoved, _meta: RecordedEvent) -> None:
        row.quantity -= removed.quantity
        row.cents -= removed.cents


def sale(number: int) -> ItemScanned | ItemRemoved:
    """Return the event of that number; every tenth takes something out of a basket."""
    product = number * 7_919 % PRODUCTS
    if number % 10 == 9:
        return ItemRemoved(product, 1, number % 97)
    return ItemScanned(product, 1, number % 89, MEMO)


def fill_log(layer: DataLayer, events: int) -> None:
    """Import so many sales; every hundred are a basket."""
    for chunk, first in enumerate(range(0, events, CHUNK_EVENTS), 1):
        numbers = range(first, min(first + CHUNK_EVENTS, events))
        baskets = [
            ImportedEvent(StreamId("basket", str(number // EVENTS_PER_STREAM)), sale(number))
            for number in numbers
        ]
        with layer.engine.begin() as conn:
            layer.events.import_events(conn, baskets, source="sales", chunk=chunk)
    vacuum(layer.engine)


def vacuum(engine: Engine) -> None:
    """Let the planner know what there is."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql("VACUUM ANALYZE")
