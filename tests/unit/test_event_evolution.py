"""Renames, dropped names, upcasters into other types: what is declared, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from datapatterns.errors import EventDataError, EventShapeError, EventTypeError
from datapatterns.event_sourcing import Aggregate, EventTypes, NewEvent, applies, every
from datapatterns.event_sourcing.content.encoding import encode
from datapatterns.event_sourcing.evolution.evolving import Verdict
from datapatterns.event_sourcing.states.snapshotting import snapshot_kind
from datapatterns.testing import SpecError, StoredPayload, assert_upcasters

Answer = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Scanned:
    product: int
    cents: int


@dataclass(frozen=True)
class CouponUsed:
    code: str


def with_cents(old: dict[str, Any]) -> dict[str, Any]:
    return {"product": old["product"], "cents": old["price"] * 100}


Tags = Callable[[Any], tuple[str, ...]]


def renamed_types(tags: Tags | None = None) -> EventTypes:
    """Version 1 was item.scanned with a price, version 2 is basket.item_scanned."""
    types = EventTypes()
    types.event("basket.item_scanned", version=2, renamed_from="item.scanned", tags=tags)(Scanned)
    types.upcast("basket.item_scanned", 1)(with_cents)
    return types


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


def test_a_name_may_be_given_up_more_than_once() -> None:
    types = renamed_types()
    types.renamed("scan", "item.scanned")

    assert types.decode("scan", 1, {"product": 7, "price": 1}) == [Scanned(7, 100)]
    assert types.stored_names(Scanned) == {"scan", "item.scanned", "basket.item_scanned"}
    assert types.named_today("scan", 1) == "basket.item_scanned"


def test_a_rename_is_the_same_in_either_order_and_twice() -> None:
    types = EventTypes()
    for _ in range(2):  # a module that is loaded again
        types.renamed("item.scanned", "basket.item_scanned")
        types.event("basket.item_scanned")(Scanned)

    assert types.decode("item.scanned", 1, {"product": 7, "cents": 1}) == [Scanned(7, 1)]


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


def test_what_an_upcaster_shares_is_not_changed_by_the_next() -> None:
    types = EventTypes()
    types.event("item.scanned", version=3)(Scanned)
    types.upcast("item.scanned", 1)(lambda old: {**old, "seen": SHARED})

    @types.upcast("item.scanned", 2)
    def _second(old: dict[str, Any]) -> dict[str, Any]:
        old["seen"].append(1)
        return {"product": 7, "cents": len(old["seen"])}

    for _ in range(2):
        assert types.decode("item.scanned", 1, {}) == [Scanned(7, 1)]
    assert SHARED == []


def test_what_is_declared_later_counts_from_then_on() -> None:
    types = renamed_types()
    with pytest.raises(EventTypeError):
        types.decode("scan", 2, {})
    before = types.revision

    types.renamed("scan", "item.scanned")

    assert types.decode("scan", 2, {"product": 7, "cents": 1}) == [Scanned(7, 1)]
    types.event("basket.item_scanned", version=3)(Scanned)
    with pytest.raises(EventShapeError, match="no upcaster"):
        types.decode("scan", 2, {"product": 7, "cents": 1})
    assert types.revision > before


def test_a_chain_may_be_longer_than_calls_can_be_nested() -> None:
    types = EventTypes()
    types.event("item.scanned", version=5_000)(Scanned)
    for version in range(1, 5_000):
        types.upcast("item.scanned", version)(lambda old: {**old, "cents": old["cents"] + 1})

    assert types.decode("item.scanned", 1, {"product": 7, "cents": 0}) == [Scanned(7, 4_999)]


def gone() -> EventTypes:
    types = renamed_types()
    types.dropped("cart.viewed", reason="x")
    return types


@pytest.mark.parametrize(
    ("declare", "reason"),
    [
        (lambda t: t.event("item.scanned")(CouponUsed), "old name of"),
        (lambda t: t.event("cart.viewed")(CouponUsed), "is dropped"),
        (lambda t: t.renamed("basket.item_scanned", "x"), "keep one"),
        (lambda t: t.renamed("item.scanned", "x"), "keep one"),
        (lambda t: t.renamed("item.scanned", "basket.item_scanned", from_version=2), "keep one"),
        (lambda t: t.renamed("cart.viewed", "x"), "keep one"),
        (lambda t: t.dropped("item.scanned", reason="x"), "keep one"),
        (lambda t: t.dropped("basket.item_scanned", reason="x"), "keep one"),
        (lambda t: t.upcast("cart.viewed", 1)(dict), "never runs"),
        (lambda t: t.upcast("item.scanned", 1)(dict), "never runs"),
        (lambda t: (t.upcast("x", 2)(dict), t.renamed("x", "y", from_version=2)), "never runs"),
        (lambda t: (t.upcast("x", 2)(dict), t.dropped("x", reason="x")), "keep one"),
        (lambda t: t.renamed("x", "x"), "again"),
        (lambda t: (t.renamed("x", "y"), t.renamed("y", "x")), "again"),
        (
            lambda t: (t.renamed("x", "y"), t.renamed("y", "z"), t.renamed("z", "x")),
            "again",
        ),
        (lambda t: t.upcast("x", 1, into={"x": 1})(list), "again"),
        (
            lambda t: (t.upcast("x", 1, into={"y": 1})(list), t.renamed("y", "x")),
            "again",
        ),
        (
            lambda t: (
                t.renamed("x", "y", from_version=2),
                t.upcast("y", 2, into={"x": 1})(list),
                t.upcast("x", 1)(dict),
            ),
            "again",
        ),
    ],
)
def test_declarations_that_contradict_each_other_are_refused(
    declare: Callable[[EventTypes], object], reason: str
) -> None:
    with pytest.raises(EventTypeError, match=reason):
        declare(gone())


def test_names_that_cannot_be_stored_and_drops_without_a_reason_are_refused() -> None:
    types = EventTypes()
    with pytest.raises(ValueError, match="cannot name"):
        types.renamed("a b", "c")
    with pytest.raises(ValueError, match="cannot name"):
        types.renamed("a", "b c")
    with pytest.raises(ValueError, match="say why"):
        types.dropped("a", reason=" ")
    with pytest.raises(ValueError, match="out of bounds"):
        types.upcast("a", 1, into={"b": 0})
    with pytest.raises(ValueError, match="dropped"):
        types.upcast("a", 1, into={})


def test_unknown_names_are_skipped_only_where_that_was_asked_for() -> None:
    types = EventTypes(skip_unknown=True)
    types.event("item.scanned", version=2)(Scanned)

    assert types.decode("gone", 1, {}) == []
    for version in (1, 3):  # a known name is no unknown one
        with pytest.raises(EventShapeError):
            types.decode("item.scanned", version, {})
    types.renamed("old", "elsewhere")
    with pytest.raises(EventTypeError):
        types.decode("old", 1, {})


def test_a_copy_that_skips_leaves_the_original_strict() -> None:
    types = renamed_types()
    copied = types.skipping_unknown()

    assert copied.decode("gone", 1, {}) == []
    assert copied.decode("item.scanned", 2, {"product": 7, "cents": 1}) == [Scanned(7, 1)]
    copied.dropped("left", reason="x")
    with pytest.raises(EventTypeError):
        types.decode("gone", 1, {})
    with pytest.raises(EventTypeError):
        types.decode("left", 1, {})


def test_tags_are_derived_from_the_object() -> None:
    types = renamed_types(tags=lambda e: (f"product:{e.product}",))

    assert encode(Scanned(7, 1), types=types).tags == ("product:7",)
    untyped = NewEvent("basket.item_scanned", {}, tags=("a",))
    assert encode(untyped, types=types).tags == ("a",)
    assert encode(Scanned(7, 1), types=renamed_types()).tags == ()


@pytest.mark.parametrize("tags", ["one", ("",), ("a\tb",), (7,), ("x",) * 21, None])
def test_tags_that_cannot_be_stored_are_refused_before_anything_is_sent(
    tags: tuple[str, ...],
) -> None:
    types = renamed_types(tags=lambda _: tags)

    with pytest.raises(EventDataError, match="its tags"):
        encode(Scanned(7, 1), types=types)


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
