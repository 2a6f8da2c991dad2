"""What would come back as another event is refused before anything is sent."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NewType
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest

from datapatterns.errors import EventDataError, EventTypeError
from datapatterns.event_sourcing import EventTypes, NewEvent
from datapatterns.event_sourcing.content.encoding import encode_batch

types = EventTypes()
BERLIN = ZoneInfo("Europe/Berlin")


@types.event("held")
@dataclass(frozen=True)
class Held:
    value: Any


@types.event("measured")
@dataclass(frozen=True)
class Measured:
    amount: float = 0.0
    price: Decimal = Decimal(0)
    at: datetime | None = None
    begins: time | None = None


@types.event("planned")
@dataclass(frozen=True)
class Planned:
    stops: list[dict[str, tuple[datetime, ...]]]


@types.event("opened")
@dataclass(frozen=True)
class Opened:
    at: time


@types.event("visited")
@dataclass(frozen=True)
class Visited:
    days: frozenset[datetime] = frozenset()
    metres: frozenset[float] = frozenset()


@types.event("timetable")
@dataclass(frozen=True)
class Timetable:
    by_day: dict[datetime, int] = field(default_factory=dict)
    by_time: dict[time, int] = field(default_factory=dict)


class Seasonal(tzinfo):
    """Knows its offset only of a moment, like many a zone that people write themselves."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        assert moment is not None
        return timedelta(hours=moment.month > 6)

    def dst(self, _moment: datetime | None) -> None: ...

    def tzname(self, _moment: datetime | None) -> str:
        return "ours"

    def __repr__(self) -> str:  # names of tests are made of it; an address is another each time
        return "Seasonal()"


@types.event("dated")
class Dated(pydantic.BaseModel, frozen=True):
    at: pydantic.AwareDatetime


@dataclass(frozen=True)
class Contact:
    city: str


@dataclass(frozen=True)
class Named(Contact):
    name: str = "Ada"


@dataclass(frozen=True)
class Alias(Contact):
    """Of another class, with nothing of its own."""


@types.event("grown")
@dataclass(frozen=True)
class Grown:
    notes: dict[str, int]

    def __post_init__(self) -> None:
        self.notes[str(len(self.notes))] = 1


@types.event("moved")
@dataclass(frozen=True)
class Moved:
    to: Contact
    stops: Sequence[int] = ()
    tags: AbstractSet[str] = frozenset()
    notes: Mapping[str, int] | None = None


@types.event("raised")
@dataclass(frozen=True)
class Raised:
    cents: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "cents", self.cents * 10)


@types.event("secret")
class Secret(pydantic.BaseModel, frozen=True):
    word: pydantic.SecretStr


@types.event("left.out")
class LeftOut(pydantic.BaseModel, frozen=True):
    told: int = 1
    kept: int = pydantic.Field(2, exclude=True)


@types.event("rounded")
class Rounded(pydantic.BaseModel, frozen=True):
    amount: float

    @pydantic.field_serializer("amount")
    def whole(self, amount: float) -> int:
        return round(amount)


@types.event("noted")
class Noted(pydantic.BaseModel, frozen=True):
    told: int
    _aside: int = pydantic.PrivateAttr(default=0)

    def aside(self, number: int) -> "Noted":
        self._aside = number  # type: ignore[misc] # private ones may change, says pydantic
        return self


@pytest.mark.parametrize(
    "event",
    [
        Held({1}),
        Held({1: 2}),
        Held(datetime(2026, 1, 1, tzinfo=UTC)),
        Held(Decimal("1.5")),
        Held(UUID(int=1)),
        Held(b"x"),
        Held([{"a": (1, b"x")}]),
        Measured(amount=2**60 + 1),
        Measured(at=datetime(1900, 1, 1, tzinfo=timezone(timedelta(minutes=53, seconds=28)))),
        Measured(begins=time(1, 2, tzinfo=timezone(timedelta(seconds=30)))),
        Measured(at=datetime(2026, 1, 1, tzinfo=BERLIN)),
        Measured(at=datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=UTC)),
        Measured(at=datetime(2026, 1, 1, tzinfo=Seasonal())),
        Measured(begins=time(12, tzinfo=BERLIN)),
        Measured(begins=time(2, 30, fold=1)),
        Opened(time(12, tzinfo=BERLIN)),
        Visited(days=frozenset({datetime(2026, 1, 1, tzinfo=BERLIN)})),
        Visited(metres=frozenset({2**60 + 1})),
        Timetable(by_day={datetime(2026, 1, 1, tzinfo=BERLIN): 1}),
        Timetable(by_time={time(12, tzinfo=BERLIN): 1}),
        Planned([{"a": (datetime(2026, 1, 1, tzinfo=BERLIN),)}]),
        Dated(at=datetime(2026, 1, 1, tzinfo=BERLIN)),
        Moved(Named("Ulm")),
        Moved(Alias("Ulm")),
        Grown({"a": 1}),
        Raised(1),
        Secret(word=pydantic.SecretStr("abracadabra")),
        LeftOut(kept=3),
        Rounded(amount=1.5),
        Noted(told=1).aside(2),
    ],
    ids=repr,
)
def test_what_would_come_back_otherwise_is_refused(event: object) -> None:
    with pytest.raises(EventDataError, match="would come back as something else") as refused:
        encode_batch([event], types=types, metadata=None)

    assert "Ada" not in str(refused.value)
    assert "abracadabra" not in str(refused.value)


@pytest.mark.parametrize(
    "event",
    [
        Held({"a": [1, None, "b", {"c": 1.5}]}),
        Measured(amount=1.0, price=Decimal("1.10")),
        Measured(price=Decimal("NaN")),
        Measured(price=Decimal("sNaN")),
        Measured(at=datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=30)))),
        Measured(at=datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")), begins=time(1, tzinfo=UTC)),
        Timetable({datetime(2026, 1, 1, tzinfo=UTC): 1}, {time(12): 1, time(1, tzinfo=UTC): 2}),
        Planned([{"a": (datetime(2026, 1, 1, tzinfo=UTC),)}]),
        Dated(at=datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
        Moved(Contact("Ulm"), (1, 2), frozenset({"a"}), {"b": 1}),
        LeftOut(told=5, kept=2),
        Rounded(amount=2.0),
        Noted(told=1),
    ],
    ids=repr,
)
def test_what_says_the_same_is_stored(event: object) -> None:
    [encoded] = encode_batch([event], types=types, metadata=None)

    [read] = types.decode_json(encoded.name, 1, encoded.data)
    assert type(read) is type(event)
    again = encode_batch([read], types=types, metadata=None)
    assert again[0].data == encoded.data


def test_json_that_nobody_has_read_is_no_field() -> None:
    alias = NewType("alias", msgspec.Raw)

    @dataclass(frozen=True)
    class Inner:
        parts: list[alias]

    @dataclass(frozen=True)
    class Outer:
        inner: Inner | None

    Inner.__annotations__["parts"] = list[alias]
    Outer.__annotations__["inner"] = Inner | None
    with pytest.raises(EventTypeError, match=r"msgspec\.Raw"):
        types.event("outer")(Outer)


@pytest.mark.parametrize("spelled", [b'{"\\u0024sealed":1}', b'{"$sealed" :1}'])
def test_a_value_that_looks_encrypted_is_refused_however_it_is_spelled(spelled: bytes) -> None:
    event = NewEvent("held", {"value": msgspec.Raw(spelled)})

    with pytest.raises(EventDataError):
        encode_batch([event, Held(msgspec.Raw(spelled))], types=types, metadata=None)
    with pytest.raises(EventDataError):
        encode_batch([Held(msgspec.Raw(spelled))], types=types, metadata=None)
