from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from datapatterns.errors import EventShapeError, EventTypeError
from datapatterns.event_sourcing import EventTypes, NewEvent, StreamId


@dataclass(frozen=True, slots=True)
class Scanned:
    product: int
    cents: int
    note: str = ""


class Left(msgspec.Struct, frozen=True):
    why: str


def declared() -> EventTypes:
    """Scanned has had three shapes: price, price in cents, and today's."""
    types = EventTypes()
    types.event("item.scanned", version=3)(Scanned)

    @types.upcast("item.scanned", 1)
    def _to_cents(old: dict[str, Any]) -> dict[str, Any]:
        return {"product": old["product"], "cents": round(old["price"] * 100)}

    @types.upcast("item.scanned", 2)
    def _one_each(old: dict[str, Any]) -> list[dict[str, Any]] | None:
        times = old.pop("times", 1)
        return [old] * times if times else None

    return types


@pytest.mark.parametrize(
    ("version", "data", "events"),
    [
        (1, {"product": 7, "price": 1.1}, [Scanned(7, 110)]),
        (2, {"product": 7, "cents": 5, "times": 2}, [Scanned(7, 5)] * 2),
        (2, {"product": 7, "cents": 5, "times": 0}, []),
        (3, {"product": 7, "cents": 5}, [Scanned(7, 5)]),
        (3, {"product": 7, "cents": 5, "note": "a", "gone": 1}, [Scanned(7, 5, "a")]),
    ],
)
def test_every_shape_that_was_stored_becomes_todays(
    version: int, data: dict[str, Any], events: list[object]
) -> None:
    types = declared()

    assert types.decode("item.scanned", version, data) == events
    encoded = msgspec.json.encode(data).decode()
    assert types.decode_json("item.scanned", version, encoded) == events


def test_upcasting_leaves_the_recorded_data_as_it_was() -> None:
    data = {"product": 7, "cents": 5, "times": 2}

    declared().decode("item.scanned", 2, data)

    assert data["times"] == 2


@pytest.mark.parametrize(
    ("version", "data", "reason"),
    [
        (4, {}, "deploy the code"),
        (3, {"product": "x", "cents": 1}, "product"),
        (3, {"product": 1}, "cents"),
        (3, {"product": 1, "cents": 1.5}, "cents"),
    ],
)
def test_data_that_does_not_fit_says_why(version: int, data: dict[str, Any], reason: str) -> None:
    types = declared()

    with pytest.raises(EventShapeError, match=reason):
        types.decode("item.scanned", version, data)
    with pytest.raises(EventShapeError, match=reason):
        types.decode_json("item.scanned", version, msgspec.json.encode(data).decode())


def test_a_missing_upcaster_is_an_error() -> None:
    types = EventTypes()
    types.event("item.scanned", version=2)(Scanned)

    with pytest.raises(EventShapeError, match="no upcaster"):
        types.decode("item.scanned", 1, {"product": 1, "cents": 1})


def test_a_type_that_is_not_declared_is_an_error() -> None:
    types = EventTypes()

    with pytest.raises(EventTypeError, match="not declared"):
        types.decode("gone", 1, {})
    with pytest.raises(EventTypeError, match="not an event"):
        types.of(Scanned)


def test_a_struct_is_an_event_too() -> None:
    types = EventTypes()
    types.event("left")(Left)

    assert types.decode("left", 1, {"why": "late"}) == [Left("late")]
    assert types.of(Left).name == "left"


def test_a_name_belongs_to_one_class() -> None:
    types = declared()

    with pytest.raises(EventTypeError, match="rename one"):
        types.event("item.scanned")(Left)


def test_a_module_that_is_loaded_again_may_declare_its_class_again() -> None:
    types = EventTypes()

    def load() -> type:
        @types.event("again")
        @dataclass(frozen=True)
        class Again:
            pass

        return Again

    first, second = load(), load()

    assert types.of(first).name == types.of(second).name
    assert [type(event) for event in types.decode("again", 1, {})] == [second]


def test_a_step_has_one_upcaster() -> None:
    types = declared()

    with pytest.raises(EventTypeError, match="two upcasters"):
        types.upcast("item.scanned", 1)(lambda old: old)


@dataclass
class Changing:
    pass


class ChangingStruct(msgspec.Struct):
    pass


@pytest.mark.parametrize("cls", [Changing, ChangingStruct, int, dict])
def test_what_can_change_or_has_no_fields_is_no_event(cls: type) -> None:
    with pytest.raises(EventTypeError):
        EventTypes().event("x")(cls)


@pytest.mark.parametrize("name", ["", "1a", "a b", "a\0", "ä", "x" * 201])
def test_a_bad_name_is_refused_where_it_is_written(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        EventTypes().event(name)
    with pytest.raises(ValueError, match="cannot name"):
        NewEvent(name, {})


@pytest.mark.parametrize("version", [0, -1, 2**31])
def test_a_bad_schema_version_is_refused(version: int) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        NewEvent("a", {}, schema_version=version)


@pytest.mark.parametrize(
    "parts",
    [
        ("", "k"),
        ("a-b", "k"),
        ("a", ""),
        ("a", "\0"),
        ("a", "\ud800"),
        ("a", "ä" * 251),
        ("a", "k", "\0"),
        ("x" * 101, "k"),
    ],
)
def test_a_bad_stream_is_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"category|key|U\+0000|surrogate"):
        StreamId(*parts)


def test_streams_have_an_order_and_a_name() -> None:
    assert StreamId("a", "2") < StreamId("b", "1")
    assert str(StreamId("basket", "a-1", tenant="t")) == "t/basket-a-1"


def test_upcasters_may_change_what_they_are_given_however_deep_it_lies() -> None:
    types = EventTypes()
    types.event("item.scanned", version=3)(Scanned)

    @types.upcast("item.scanned", 1)
    def _twice(old: dict[str, Any]) -> list[dict[str, Any]]:
        old["prices"].append(5)
        return [old] * 2

    @types.upcast("item.scanned", 2)
    def _last_price(old: dict[str, Any]) -> dict[str, Any]:
        return {"product": old["product"], "cents": old["prices"].pop()}

    data: dict[str, Any] = {"product": 7, "prices": []}

    assert types.decode("item.scanned", 1, data) == [Scanned(7, 5)] * 2
    assert data == {"product": 7, "prices": []}


def test_a_class_stands_for_one_name() -> None:
    types = declared()

    with pytest.raises(EventTypeError, match=r"is the class of 'item\.scanned', too"):
        types.event("item.seen")(Scanned)
    types.event("item.scanned", version=3)(Scanned)  # again, as when a module is run twice
