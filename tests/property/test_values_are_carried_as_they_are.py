"""What is carried to another process and back is the same to its type, or is refused."""

import io
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import TZPATH, ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql import Range

from datapatterns.cqrs.determinism.carrying import UncarriedError, carry, given_back
from tests.fixtures.elsewhere import Colour, Loose, Model, Money, Point, Rights, Size, Word

FIXED = st.builds(
    timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)) | st.just(timedelta())
)
ZONES = st.none() | st.just(UTC) | FIXED | st.sampled_from(["Europe/Berlin", "UTC"]).map(ZoneInfo)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**4_000]),
    st.floats(allow_nan=False),
    TEXT,
    st.binary(max_size=8),
    st.decimals(allow_nan=False),
    st.dates(),
    st.datetimes(timezones=ZONES, allow_imaginary=True),
    st.times(timezones=st.none() | FIXED),
    st.timedeltas(),
    st.uuids(),
    st.ip_addresses(),
    st.sampled_from([Colour.RED, Colour.BLUE, Size.L, Word.YES, Rights.READ | Rights.WRITE]),
    st.builds(Money, st.integers(-(2**63), 2**63 - 1), st.just(Word.YES)),
    st.builds(Point, st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 9)),
    st.builds(Model, name=TEXT),
    st.builds(Range, st.integers(0, 5), st.integers(6, 9), bounds=st.sampled_from(["[)", "(]"])),
)
VALUES = st.recursive(
    HASHABLE
    | st.floats()
    | st.sampled_from([Decimal("NaN123"), Decimal("sNaN"), Decimal("-0.00"), Decimal("1E+99999")])
    | st.binary(max_size=8).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
        | st.frozensets(HASHABLE, max_size=4)
        | st.lists(HASHABLE, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


def sent(value: object) -> Any:  # noqa: ANN401 -- as it was
    return given_back(msgspec.msgpack.decode(msgspec.msgpack.encode(carry(value))))


def told(value: Any) -> object:  # noqa: ANN401 -- of any class
    """Return what tells a value from every other one, whatever they call equal."""
    kind = type(value)
    if kind in {list, tuple}:
        return kind, [told(one) for one in value]
    if kind in {set, frozenset}:
        return kind, sorted(map(repr, map(told, value)))
    if kind is dict:
        return kind, [(told(key), told(part)) for key, part in value.items()]
    if kind is int:
        return kind, hex(value)
    if kind is float:
        return kind, value.hex()
    return kind, repr(value)


@given(VALUES)
def test_values_come_back_as_they_were(value: object) -> None:
    assert told(sent(value)) == told(value)


def test_what_equality_does_not_see_is_told() -> None:
    """The control."""
    pairs: list[tuple[object, object]] = [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        (Decimal("1.10"), Decimal("1.1")),
        ({1: 0, 2: 0}, {2: 0, 1: 0}),
        (Size.L, 3),
        (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC"))),
        (datetime(2024, 10, 27, 2, fold=1), datetime(2024, 10, 27, 2)),  # noqa: DTZ001 -- the point
    ]

    for one, other in pairs:
        assert one == other
        assert told(one) != told(other)
        assert told(sent(one)) != told(sent(other))


class Pair(NamedTuple):
    one: int
    other: int


class Shouted(str):
    __slots__ = ()


class Somewhere(tzinfo):
    def utcoffset(self, _when: datetime | None) -> timedelta:
        return timedelta()

    dst = utcoffset

    def tzname(self, _when: datetime | None) -> str:
        return "somewhere"


def zone_of_a_file() -> ZoneInfo:
    path = next(path for folder in TZPATH if (path := Path(folder, "Europe/Berlin")).exists())
    return ZoneInfo.from_file(io.BytesIO(path.read_bytes()))


def of_a_function() -> object:
    class Local(msgspec.Struct, frozen=True):
        pass

    return Local()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Shouted("a"), "Shouted"),
        (lambda: Pair(1, 2), "Pair"),
        (lambda: OrderedDict(a=1), "collections.OrderedDict"),
        (lambda: Counter("a"), "collections.Counter"),
        (lambda: (one for one in "a"), "builtins.generator"),
        (lambda: print, "builtins.builtin_function_or_method"),
        (lambda: int, "builtins.type"),
        (object, "builtins.object"),
        (lambda: 1j, "builtins.complex"),
        (of_a_function, "of_a_function.<locals>.Local"),
        (lambda: Loose((1, 2)), "Loose"),
        (lambda: Loose(float("nan")), "Loose"),
        (lambda: time(1, tzinfo=Somewhere()), "Somewhere"),
        (lambda: timezone(timedelta(hours=1), "CET"), "time zone"),
        (zone_of_a_file, "ZoneInfo"),
    ],
)
def test_what_would_come_back_otherwise_is_refused_by_its_name(
    make: Callable[[], object], name: str
) -> None:
    with pytest.raises(UncarriedError) as refused:
        carry([{"deep": make()}])

    assert name in str(refused.value)


def test_integers_are_carried_that_python_writes_in_no_digits() -> None:
    assert sent(10**5_000) == 10**5_000


def test_what_holds_itself_is_refused() -> None:
    value: list[object] = []
    value.append(value)

    with pytest.raises(RecursionError):
        carry(value)


@pytest.mark.parametrize(
    ("garbled", "error"),
    [
        (["nothing", 1], KeyError),
        ([], ValueError),
        ([["list"], 1], TypeError),
        (["enum", ["wave", "Wave_read", "x"]], KeyError),
        (["enum", ["tests.fixtures.elsewhere", "Point", "RED"]], TypeError),
        (["enum", ["tests.fixtures.elsewhere", "Colour", "GREEN"]], KeyError),
        (["object", ["os", "system", b'"true"']], TypeError),
        (["object", ["tests.fixtures.elsewhere", "Point", b"{"]], msgspec.DecodeError),
        (["Decimal", [1]], ValueError),
    ],
    ids=str,
)
def test_what_nobody_has_carried_is_not_given_back(garbled: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        given_back(garbled)

    assert "wave" not in sys.modules
