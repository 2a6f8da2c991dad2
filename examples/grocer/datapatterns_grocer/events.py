"""What happens to a basket, and the basket that follows from it."""

from dataclasses import dataclass

from datapatterns.event_sourcing import Aggregate, applies, event, every
from datapatterns_grocer.dataset import Line

CATEGORY = "basket"


@event("basket.started")
@dataclass(frozen=True, slots=True)
class BasketStarted:
    """A household took a basket in a store."""

    household_id: int
    store_id: int
    week: int


@event("item.scanned")
@dataclass(frozen=True, slots=True)
class ItemScanned:
    """The till read a product; cents are for all of them together."""

    product_id: int
    quantity: int
    cents: int


@event("coupon.applied")
@dataclass(frozen=True, slots=True)
class CouponApplied:
    """A coupon was taken off before the cents of its item were rung up."""

    product_id: int
    cents: int


@event("basket.paid")
@dataclass(frozen=True, slots=True)
class BasketPaid:
    """The household paid; from here on nothing is scanned."""

    items: int
    cents: int


Happening = BasketStarted | ItemScanned | CouponApplied | BasketPaid


class Basket(Aggregate, category=CATEGORY, snapshot=every(50)):
    """A basket at the till."""

    household_id = 0
    items = 0
    cents = 0
    coupon_cents = 0
    paid_cents: int | None = None

    @applies
    def _(self, e: BasketStarted) -> None:
        self.household_id = e.household_id

    @applies
    def _(self, e: ItemScanned) -> None:
        self.items += 1
        self.cents += e.cents

    @applies
    def _(self, e: CouponApplied) -> None:
        self.coupon_cents += e.cents

    @applies
    def _(self, e: BasketPaid) -> None:
        self.paid_cents = e.cents

    def ring_up(self, lines: list[Line]) -> None:
        """Shop a whole basket, from start to payment."""
        first = lines[0]
        self.start(first.household_id, first.store_id, first.week)
        for line in lines:
            self.scan(line.product_id, line.quantity, line.cents)
            if line.coupon_cents:
                self.apply_coupon(line.product_id, line.coupon_cents)
        self.pay()

    def start(self, household_id: int, store_id: int, week: int) -> None:
        """Take the basket."""
        self.emit(BasketStarted(household_id, store_id, week))

    def scan(self, product_id: int, quantity: int, cents: int) -> None:
        """Put something on the till; refused once the basket is paid."""
        if self.paid_cents is not None:
            raise ValueError("the basket is paid; start another")
        self.emit(ItemScanned(product_id, quantity, cents))

    def apply_coupon(self, product_id: int, cents: int) -> None:
        """Note what a coupon took off."""
        self.emit(CouponApplied(product_id, cents))

    def pay(self) -> None:
        """Close the basket."""
        self.emit(BasketPaid(self.items, self.cents))


def happenings(lines: list[Line]) -> list[Happening]:
    """Return what happened at the till, from the receipt of one basket."""
    first = lines[0]
    told: list[Happening] = [BasketStarted(first.household_id, first.store_id, first.week)]
    for line in lines:
        told.append(ItemScanned(line.product_id, line.quantity, line.cents))
        if line.coupon_cents:
            told.append(CouponApplied(line.product_id, line.coupon_cents))
    told.append(BasketPaid(len(lines), sum(line.cents for line in lines)))
    return told
