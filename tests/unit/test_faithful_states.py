"""What a snapshot would bring back otherwise is refused before it is stored."""

from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing import Aggregate
from datapatterns.event_sourcing.states.state import state_shape, value_shape


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    ONE = 1


class Pair(NamedTuple):
    a: int
    b: int


@dataclass
class Line:
    units: int


@dataclass(frozen=True)
class Fixed:
    units: int
    notes: tuple[str, ...] = ()


@dataclass
class Lax:
    """Equal to whatever has its number."""

    number: int
    notes: list[float] = field(default_factory=list, compare=False)


class Row(msgspec.Struct):
    units: int


class Noted(pydantic.BaseModel):
    told: int
    _aside: int = pydantic.PrivateAttr(default=0)

    def aside(self, number: int) -> "Noted":
        self._aside = number
        return self


LINE, LIST = Line(1), [1]


@pytest.mark.parametrize(
    ("hint", "state"),
    [
        (str, Colour.RED),
        (dict[str, int], defaultdict(int, a=1)),
        (dict[str, int], Counter("a")),
        (dict[str, int], OrderedDict(a=1)),
        (tuple[int, int], Pair(1, 2)),
        (frozenset[int], {1}),
        (bytes, bytearray(b"x")),
        (float, 2**53 + 2),
        (float, Level.ONE),
        (Decimal, 3),
        (datetime, datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))),
        (datetime, datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=UTC)),
        (datetime, datetime(1900, 1, 1, tzinfo=timezone(timedelta(minutes=53, seconds=28)))),
        (dict[str, int], {Colour.RED: 1}),
        (dict[datetime, int], {datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")): 1}),
        (set[str], {Colour.RED}),
        (Noted, Noted(told=1).aside(2)),
        (Lax, Lax(1, [True])),
        (Any, {"at": datetime(2026, 1, 1, tzinfo=UTC)}),
    ],
)
def test_a_state_that_only_equals_what_comes_back_is_refused(hint: object, state: object) -> None:
    with pytest.raises(AggregateError, match=r"JSON would change|differs from its type"):
        value_shape("till", hint).encode_value(state)


@pytest.mark.parametrize(
    ("hint", "state"),
    [
        (list[Line], [LINE, LINE]),
        (tuple[list[int], list[int]], (LIST, LIST)),
        (dict[str, list[int]], {"a": LIST, "b": LIST}),
        (list[tuple[list[int], int]], [(LIST, 1), (LIST, 2)]),
        (list[Row], [Row(1)] * 2),
        (list[set[int]], [{1}] * 2),
        (list[bytearray], [bytearray(b"x")] * 2),
    ],
)
def test_what_lies_in_two_places_and_can_change_is_refused(hint: object, state: object) -> None:
    with pytest.raises(AggregateError, match="in two places"):
        value_shape("till", hint).encode_value(state)


@pytest.mark.parametrize(
    ("hint", "state"),
    [
        (float, 3),
        (float, -0.0),
        (Decimal, Decimal("1.10")),
        (list[Fixed], [Fixed(1, ("a",))] * 2),
        (list[Line], [Line(1), Line(1)]),
        (set[str], {"a", "b"}),
        (frozenset[Fixed], frozenset({Fixed(1), Fixed(2)})),
        (dict[int, date], {2: date(2026, 1, 1), 1: date(2025, 1, 1)}),
        (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=30)))),
        (datetime, datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC"))),
        (tuple[int, ...], ()),
        (Colour, Colour.RED),
        (UUID | None, UUID(int=1)),
        (Any, {"a": [1, None, "b"]}),
    ],
)
def test_a_state_that_comes_back_as_it_was_is_stored(hint: object, state: object) -> None:
    shape = value_shape("till", hint)

    assert shape.decode_value(shape.encode_value(state)) == state


@pytest.mark.parametrize("number", ["NaN", "sNaN", "-0", "1E+500"])
def test_a_decimal_comes_back_to_the_letter(number: str) -> None:
    shape = value_shape("till", Decimal)

    assert str(shape.decode_value(shape.encode_value(Decimal(number)))) == number


def test_attributes_of_aggregates_are_compared_with_each_other() -> None:
    class Basket(Aggregate, category="basket"):
        lines: list[Line] = []  # noqa: RUF012 -- each object gets a copy
        last: Line | None = None

    shape, basket = state_shape(Basket, above=Aggregate), Basket("1")
    basket.lines.append(Line(1))
    shape.encode(basket)

    basket.last = basket.lines[0]  # adding to one adds to the other, until a load has made two
    with pytest.raises(AggregateError, match=r"one Line in two places, last and lines\[\]"):
        shape.encode(basket)


def test_state_in_a_slot_is_not_forgotten() -> None:
    class Hidden(Aggregate, category="hidden"):
        __slots__ = ("secret",)

    shape, hidden = state_shape(Hidden, above=Aggregate), Hidden("1")
    shape.encode(hidden)

    hidden.secret = 1  # type: ignore[attr-defined] # a slot, without an annotation
    with pytest.raises(AggregateError, match="sets secret, which it does not declare"):
        shape.encode(hidden)


def test_messages_do_not_quote_the_state() -> None:
    with pytest.raises(AggregateError) as refused:
        value_shape("till", dict[str, list[str]]).encode_value(
            {"ada": (names := ["x"]), "b": names}
        )

    assert "ada" not in str(refused.value)
