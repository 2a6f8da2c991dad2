"""A snapshot depends on the upcasters, renames and splits that lead to its events, on no others."""

from typing import Any

from datapatterns.event_sourcing import Aggregate, EventTypes, applies, every
from datapatterns.event_sourcing.states.snapshotting import snapshot_kind
from tests.fixtures.evolving_types import CouponUsed, Scanned, with_cents


class Basket(Aggregate, category="basket", snapshot=every(10)):
    cents = 0

    @applies
    def _(self, e: Scanned) -> None:
        self.cents += e.cents


def fingerprint(types: EventTypes) -> bytes:
    kind = snapshot_kind(Basket, types)
    assert kind is not None
    return kind.fingerprint


def plain_types() -> EventTypes:
    types = EventTypes()
    types.event("basket.item_scanned", version=2)(Scanned)
    types.upcast("basket.item_scanned", 1)(with_cents)
    return types


def test_snapshots_depend_on_all_that_leads_to_a_class() -> None:
    def split(old: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        return [("basket.item_scanned", old)]

    def other(old: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        return [("basket.item_scanned", {**old, "cents": 0})]

    variants = [plain_types() for _ in range(7)]
    variants[1].renamed("item.scanned", "basket.item_scanned")
    variants[2].renamed("item.scanned", "basket.item_scanned", from_version=2)
    variants[3].renamed("item.scanned", "basket.item_scanned")
    variants[3].renamed("scan", "item.scanned")
    variants[4].upcast("order.done", 1, into={"basket.item_scanned": 1})(split)
    variants[5].upcast("order.done", 1, into={"basket.item_scanned": 2})(split)
    variants[6].upcast("order.done", 1, into={"basket.item_scanned": 1})(other)

    assert len({fingerprint(types) for types in variants}) == len(variants)


def test_snapshots_do_not_depend_on_what_leads_elsewhere() -> None:
    types = plain_types()
    types.event("coupon.used")(CouponUsed)
    types.renamed("voucher.used", "coupon.used")
    types.dropped("cart.viewed", reason="x")

    assert fingerprint(types) == fingerprint(plain_types())


def test_a_version_that_leads_elsewhere_does_not_count_if_another_of_its_name_does() -> None:
    def split(_old: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        return []

    def types(*, elsewhere: bool) -> EventTypes:
        made = plain_types()
        made.event("coupon.used")(CouponUsed)
        made.upcast("order.done", 2, into={"basket.item_scanned": 2})(split)
        if elsewhere:
            made.upcast("order.done", 1, into={"coupon.used": 1})(split)
        return made

    assert fingerprint(types(elsewhere=True)) == fingerprint(types(elsewhere=False))
