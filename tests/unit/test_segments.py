"""Which keys a segment owns."""

from collections.abc import Hashable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.cqrs.running.segments import WHOLE, Segment, make_whole, segment_hash
from datapatterns.errors import SegmentKeyError


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Shape(Enum):
    ROUND = 1


KEYS = st.recursive(
    st.one_of(
        st.text(),
        st.integers(),
        st.decimals(allow_nan=False, allow_infinity=False),
        st.floats(allow_nan=False, allow_infinity=False),
        st.uuids(),
        st.datetimes(timezones=st.none() | st.just(UTC)),
        st.dates(),
        st.binary(),
        st.none(),
    ),
    lambda keys: st.tuples(keys, keys),
    max_leaves=4,
)


@given(key=KEYS, splits=st.lists(st.integers(0, 15), max_size=8))
def test_each_key_has_one_owner_however_often_segments_split(
    key: Hashable, splits: list[int]
) -> None:
    segments = [WHOLE]
    for choice in splits:
        segments += segments.pop(choice % len(segments)).halves()

    assert make_whole(segments)
    assert sum(segment.owns(key) for segment in segments) == 1


@pytest.mark.parametrize(
    "equal",
    [
        (1, 1.0, True, Decimal("1.0"), Fraction(1), Size.SMALL),
        (Decimal("1.50"), 1.5),
        ("red", Colour.RED),
        (
            datetime(2026, 1, 1, 12, tzinfo=UTC),
            datetime(2026, 1, 1, 14, tzinfo=timezone(timedelta(hours=2))),
        ),
        ((1, "a"), (1.0, "a")),
    ],
    ids=str,
)
def test_keys_that_are_one_key_in_python_have_one_hash(equal: tuple[Any, ...]) -> None:
    assert len(set(equal)) == 1

    assert len({segment_hash(key) for key in equal}) == 1


def test_keys_that_look_alike_are_told_apart() -> None:
    keys: list[Any] = ["1", 1, b"1", ("1",), (1,), None, "", (), ("a,b",), ("a", "b"), Shape.ROUND]
    keys += [date(2026, 1, 1), "2026-01-01", time(1), timedelta(hours=1), UUID(int=1)]

    assert len({segment_hash(key) for key in keys}) > len(keys) - 2  # 16 bits may clash


def test_the_hash_is_the_same_in_every_process_and_release() -> None:
    assert [segment_hash(key) for key in ("milk", 42, UUID(int=7), ("a", 1), None)] == GOLDEN


GOLDEN = [38966, 29487, 42370, 45231, 14707]


@pytest.mark.parametrize(
    "key", [object(), frozenset({"a"}), ("a", object())], ids=["an object", "a set", "in a tuple"]
)
def test_a_key_that_may_differ_elsewhere_is_refused(key: Hashable) -> None:
    with pytest.raises(SegmentKeyError, match="use text, numbers"):
        Segment(0, 1).owns(key)


def test_nothing_is_asked_of_keys_that_are_not_split() -> None:
    assert WHOLE.owns(object())
