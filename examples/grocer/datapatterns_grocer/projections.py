"""What follows from the events: read models in tables, folded or by statements, and in Redis."""

from collections.abc import Mapping

from sqlalchemy import Executable, FromClause, Table, func, select

from datapatterns.cqrs import Projection, RedisChanges, RedisProjection, SetProjection, on, upsert
from datapatterns.event_sourcing import RecordedEvent
from datapatterns_grocer.events import BasketPaid, BasketStarted, CouponApplied, ItemScanned
from datapatterns_grocer.model import BasketSize, ProductSales, StoreBaskets


class SalesByProduct(Projection, into=ProductSales, version=1):
    """How much of each product was sold; a row of a plain table for each."""

    @on(ItemScanned, key=lambda e, _meta: e.product_id)
    def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += e.quantity
        row.cents += e.cents


class SalesAndScans(Projection, into=ProductSales, version=2, name=SalesByProduct.name):
    """The next version of it: it counts, too, how often a product was scanned."""

    @on(ItemScanned, key=lambda e, _meta: e.product_id)
    def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += e.quantity
        row.cents += e.cents
        row.scans += 1


class BasketsBySize(SetProjection, into=BasketSize, version=1, reads=(BasketPaid,), additive=True):
    """How many baskets held so many items; no event leaves the database for it."""

    def statements(self, events: FromClause, tables: Mapping[type, Table]) -> Executable:
        """Add up the baskets of a range of the log."""
        items = events.c.data["items"].as_integer()
        cents = events.c.data["cents"].as_integer()
        sizes = select(
            items.label("items"),
            func.count().label("baskets"),
            func.sum(cents).label("cents"),
        ).group_by(items)
        return upsert(tables[BasketSize], sizes, add=["baskets", "cents"])


class BasketsByStore(Projection, into=StoreBaskets, version=1, inline=True):
    """How many baskets each store has seen; never behind, once appends keep it."""

    @on(BasketStarted, key=lambda e, _meta: e.store_id)
    def _(self, row: StoreBaskets, _e: BasketStarted, _meta: RecordedEvent) -> None:
        row.baskets += 1


class Dashboard(RedisProjection, version=1):
    """What the manager's screen shows, live."""

    @on(BasketStarted)
    def _(self, changes: RedisChanges, e: BasketStarted, _meta: RecordedEvent) -> None:
        changes.add_score("baskets_by_store", e.store_id)

    @on(CouponApplied)
    def _(self, changes: RedisChanges, e: CouponApplied, _meta: RecordedEvent) -> None:
        changes.increment("totals", "coupon_cents", e.cents)

    @on(BasketPaid)
    def _(self, changes: RedisChanges, e: BasketPaid, _meta: RecordedEvent) -> None:
        changes.increment("totals", "baskets")
        changes.increment("totals", "items", e.items)
        changes.increment("totals", "cents", e.cents)


PROJECTIONS = (SalesByProduct, BasketsBySize, BasketsByStore, Dashboard)
"""What follows the log from the beginning."""

DECLARED = (*PROJECTIONS, SalesAndScans)
"""What the layer declares: with the version that is built later."""
