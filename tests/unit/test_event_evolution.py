"""Renames, dropped names, upcasters into other types: what stored events become by them."""

from typing import Any

import pytest

from datapatterns.errors import EventShapeError, EventTypeError
from datapatterns.event_sourcing import EventTypes
from datapatterns.event_sourcing.evolution.evolving import Verdict
from datapatterns.testing import SpecError, StoredPayload, assert_upcasters
from tests.fixtures.evolving_types import CouponUsed, Scanned, renamed_types, with_cents

Answer = list[tuple[str, dict[str, Any]]]


def split_types() -> EventTypes:
    types = EventTypes()
    types.event("item.scanned", version=2)(Scanned)
    types.event("coupon.used")(CouponUsed)

    @types.upcast("item.scanned", 1, into={"item.scanned": 2, "coupon.used": 1})
    def _split(old: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        coupons = [("coupon.used", {"code": code}) for code in old.pop("coupons")]
        return [("item.scanned", old), *coupons]

    return types


def test_what_is_stored_under_the_old_name_is_read_as_the_new_one() -> None:
    types = renamed_types()

    assert types.decode("item.scanned", 1, {"product": 7, "price": 1}) == [Scanned(7, 100)]
    assert types.decode("item.scanned", 2, {"product": 7, "cents": 1}) == [Scanned(7, 1)]
    assert types.decode_json("item.scanned", 2, '{"product":7,"cents":1}') == [Scanned(7, 1)]
    assert types.of(Scanned).name == "basket.item_scanned"
    assert types.reader("item.scanned", 2).decoder is not None, "no detour for today's shape"


def test_the_old_names_upcasters_lead_up_to_the_version_of_the_rename() -> None:
    types = EventTypes()
    types.event("basket.item_scanned", version=2)(Scanned)
    types.renamed("item.scanned", "basket.item_scanned", from_version=2)
    types.upcast("item.scanned", 1)(with_cents)

    assert types.decode("item.scanned", 1, {"product": 7, "price": 1}) == [Scanned(7, 100)]
    with pytest.raises(EventShapeError, match="no upcaster"):
        types.decode("basket.item_scanned", 1, {"product": 7, "price": 1})


def test_a_version_between_the_upcasters_of_an_old_name_and_its_rename_lacks_one() -> None:
    types = EventTypes()
    types.event("basket.item_scanned", version=5)(Scanned)
    types.renamed("item.scanned", "basket.item_scanned", from_version=5)
    types.upcast("item.scanned", 1)(with_cents)

    assert types.fate("item.scanned", 3).verdict is Verdict.NO_UPCASTER
    assert types.fate("basket.item_scanned", 6).verdict is Verdict.TOO_NEW


def test_a_name_may_be_given_up_more_than_once() -> None:
    types = renamed_types()
    types.renamed("scan", "item.scanned")

    assert types.decode("scan", 1, {"product": 7, "price": 1}) == [Scanned(7, 100)]
    assert types.stored_names(Scanned) == {"scan", "item.scanned", "basket.item_scanned"}
    assert types.named_today("scan", 1) == "basket.item_scanned"


def test_a_name_that_leads_nowhere_says_which() -> None:
    types = EventTypes()
    types.renamed("item.scanned", "basket.item_scanned")

    with pytest.raises(EventTypeError, match=r"^basket\.item_scanned: .*declared"):
        types.decode("item.scanned", 1, {})


def test_dropped_events_are_read_as_nothing_in_every_version() -> None:
    types = EventTypes()
    types.dropped("cart.viewed", reason="nobody looks at it")
    types.renamed("viewed", "cart.viewed")

    for name in ("cart.viewed", "viewed"):
        assert types.decode(name, 3, {"any": 1}) == []
        assert types.decode_json(name, 3, '{"any": 1}') == []
        assert types.fate(name, 3).verdict is Verdict.DROPPED
    assert types.fate("viewed", 1).reason == "nobody looks at it"


def test_one_event_may_be_several_of_other_types_today() -> None:
    types = split_types()
    data = {"product": 7, "cents": 5, "coupons": ["A", "B"]}

    assert types.decode("item.scanned", 1, data) == [
        Scanned(7, 5),
        CouponUsed("A"),
        CouponUsed("B"),
    ]
    assert data["coupons"] == ["A", "B"]
    assert types.stored_names(CouponUsed) == {"coupon.used", "item.scanned"}
    assert [declared.cls for declared in types.fate("item.scanned", 1).classes] == [
        CouponUsed,
        Scanned,
    ]


def test_the_parts_of_a_split_climb_on_from_the_version_that_they_were_made_for() -> None:
    types = split_types()
    types.event("coupon.used", version=2)(CouponUsed)
    types.upcast("coupon.used", 1)(lambda old: {"code": old["code"].lower()})

    [_, coupon] = types.decode("item.scanned", 1, {"product": 7, "cents": 5, "coupons": ["A"]})

    assert coupon == CouponUsed("a")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([("left", {})], "into"),
        ([{"product": 1}], "names with their data"),
        ([("item.scanned", 1)], "names with their data"),
    ],
)
def test_a_split_that_gives_something_else_is_an_error(answer: Answer, reason: str) -> None:
    types = EventTypes()
    types.event("item.scanned", version=2)(Scanned)
    types.upcast("item.scanned", 1, into={"item.scanned": 2})(lambda _old: answer)

    with pytest.raises(EventShapeError, match=reason):
        types.decode("item.scanned", 1, {})


def test_an_upcaster_that_raises_is_an_error_that_names_it_but_no_data() -> None:
    types = renamed_types()

    with pytest.raises(EventShapeError, match="its upcaster raised KeyError") as failing:
        types.decode("item.scanned", 1, {"secret": 1})

    assert isinstance(failing.value.__cause__, KeyError)
    assert "price" not in str(failing.value)
    assert (failing.value.event_type, failing.value.schema_version) == ("basket.item_scanned", 1)


def test_an_upcaster_that_returns_no_dict_is_an_error() -> None:
    types = EventTypes()
    types.event("item.scanned", version=2)(Scanned)
    types.upcast("item.scanned", 1)(lambda _old: [1])  # type: ignore[type-var] # that is the test

    with pytest.raises(EventShapeError, match="something else than dicts"):
        types.decode("item.scanned", 1, {})


SHARED: list[int] = []
SHARED_TOO: set[str] = set()


def test_what_an_upcaster_shares_is_not_changed_by_the_next() -> None:
    types = EventTypes()
    types.event("item.scanned", version=3)(Scanned)
    types.upcast("item.scanned", 1)(lambda old: {**old, "seen": SHARED, "by": SHARED_TOO})

    @types.upcast("item.scanned", 2)
    def _second(old: dict[str, Any]) -> dict[str, Any]:
        old["seen"].append(1)
        old["by"].add("ann")
        return {"product": 7, "cents": len(old["seen"])}

    for _ in range(2):
        assert types.decode("item.scanned", 1, {}) == [Scanned(7, 1)]
    assert SHARED == []
    assert not SHARED_TOO


def test_parts_of_a_split_that_are_one_object_are_not_changed_by_each_other() -> None:
    types = EventTypes()
    types.event("item.scanned", version=2)(Scanned)

    @types.upcast("order.done", 1, into={"item.scanned": 1})
    def _split(_old: dict[str, Any]) -> Answer:
        return [("item.scanned", {"seen": SHARED})] * 2

    @types.upcast("item.scanned", 1)
    def _count(old: dict[str, Any]) -> dict[str, Any]:
        old["seen"].append(1)
        return {"product": 7, "cents": len(old["seen"])}

    assert types.decode("order.done", 1, {}) == [Scanned(7, 1)] * 2
    assert SHARED == []


def test_a_chain_may_be_longer_than_calls_can_be_nested() -> None:
    types = EventTypes()
    types.event("item.scanned", version=5_000)(Scanned)
    for version in range(1, 5_000):
        types.upcast("item.scanned", version)(lambda old: {**old, "cents": old["cents"] + 1})

    assert types.decode("item.scanned", 1, {"product": 7, "cents": 0}) == [Scanned(7, 4_999)]


CORPUS = [
    StoredPayload("item.scanned", 1, {"product": 7, "price": 1}),
    StoredPayload("basket.item_scanned", 2, {"product": 7, "cents": 149}),
]


def test_a_corpus_of_the_old_name_counts_for_the_new_one() -> None:
    assert assert_upcasters(CORPUS, events=[Scanned], types=renamed_types()) == 2
    with pytest.raises(SpecError, match=r"missing   basket\.item_scanned version 1"):
        assert_upcasters(CORPUS[1:], types=renamed_types())


def test_a_corpus_holds_the_versions_that_the_old_name_climbs_by() -> None:
    types = EventTypes()
    types.event("basket.item_scanned", version=2)(Scanned)
    types.renamed("item.scanned", "basket.item_scanned", from_version=2)
    types.upcast("item.scanned", 1)(with_cents)
    old = StoredPayload("item.scanned", 2, {"product": 7, "cents": 149})
    corpus = [old, StoredPayload("basket.item_scanned", 1, {"product": 7, "cents": 149})]

    with pytest.raises(SpecError, match=r"missing   item\.scanned version 1"):
        assert_upcasters(corpus, types=types)


def test_a_corpus_of_dropped_events_is_read_as_nothing() -> None:
    types = renamed_types()
    types.dropped("cart.viewed", reason="x")
    corpus = [*CORPUS, StoredPayload("cart.viewed", 4, {"a": 1})]

    assert assert_upcasters(corpus, types=types) == 3
