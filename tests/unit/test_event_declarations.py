"""What is declared about types of events holds from then on; what contradicts itself is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from datapatterns.errors import EventDataError, EventShapeError, EventTypeError
from datapatterns.event_sourcing import EventTypes, NewEvent, Personal
from datapatterns.event_sourcing.content.encoding import encode
from datapatterns.event_sourcing.evolution.evolving import Verdict
from tests.fixtures.evolving_types import CouponUsed, Scanned, renamed_types


def test_a_rename_is_the_same_in_either_order_and_twice() -> None:
    types = EventTypes()
    for _ in range(2):  # a module that is loaded again
        types.renamed("item.scanned", "basket.item_scanned")
        types.event("basket.item_scanned")(Scanned)

    assert types.decode("item.scanned", 1, {"product": 7, "cents": 1}) == [Scanned(7, 1)]


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
        (lambda t: (t.upcast("y", 3, into={"x": 3})(list), t.renamed("x", "y")), "again"),
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


def test_names_and_personal_fields_that_are_declared_later_count_from_then_on() -> None:
    types = EventTypes()

    @types.event("customer.registered")
    @dataclass(frozen=True)
    class Registered:
        customer: int
        email: Annotated[str, Personal(subject="customer")]

    assert types.stored_names(Registered) == {"customer.registered"}
    assert types.personal_plan("signed.up", 1) is None

    types.renamed("signed.up", "customer.registered")

    assert types.stored_names(Registered) == {"customer.registered", "signed.up"}
    assert types.personal_plan("signed.up", 1) == types.personal_plan("customer.registered", 1)


def test_what_leads_to_a_class_is_told_in_the_order_of_names_in_every_process() -> None:
    types = renamed_types()
    names = [f"scan.{n}" for n in range(20)]
    for name in names:
        types.renamed(name, "item.scanned")

    told = [ancestor.shape for ancestor in types.history(Scanned)]

    assert told == sorted(told)
    assert {shape.name for shape in told} >= {*names, "item.scanned"}


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


def test_what_a_copy_declares_later_is_not_declared_in_the_original() -> None:
    types = renamed_types()
    types.upcast("a", 1)(dict)
    types.upcast("y", 7, into={"x": 7})(splitting)
    copied = types.skipping_unknown()

    copied.event("coupon.used")(CouponUsed)
    copied.upcast("b", 1)(dict)
    copied.upcast("a", 2)(dict)

    for name in ("coupon.used", "b"):
        assert types.fate(name, 1).verdict is Verdict.UNKNOWN
    types.renamed("a", "c", from_version=2)
    with pytest.raises(EventTypeError, match="again"):
        copied.renamed("x", "y")


def splitting(_old: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return []


def test_what_an_old_name_meant_before_its_rename_leads_in_no_circle() -> None:
    types = EventTypes()
    types.renamed("x", "y", from_version=2)

    types.upcast("y", 1, into={"x": 1})(splitting)

    assert types.fate("y", 1).verdict is Verdict.NO_UPCASTER


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
