from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.errors import PageCursorError
from datapatterns.sharding.scatter.page_cursors import cursor_of, values_of

Mood = Enum("Mood", ["calm"])

VALUES = [
    True, False, 0, -(2**63), 0.1, float("inf"), "", "ä😀\x00", Decimal("1.00"), Decimal("NaN"),
    datetime(2024, 10, 27, 2, 30, tzinfo=UTC), datetime(2024, 1, 1), date(1, 1, 1),  # noqa: DTZ001
    time(3, 4, 5, 6), timedelta(days=-1, microseconds=1), UUID(int=7), b"\x00\xff",
]  # fmt: skip


def test_a_cursor_gives_back_what_it_was_made_of() -> None:
    found = values_of("by a", cursor_of("by a", VALUES))

    assert [(type(value), str(value)) for value in found] == [
        (type(value), str(value)) for value in VALUES
    ]


@given(st.text() | st.text(alphabet="abcdefghijklmnopqrstuvwxyzABCDEF0123456789-_=", min_size=8))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(PageCursorError):
        values_of("by a", text)


@given(st.integers(0, 40), st.sampled_from("aZ5-_"))
def test_a_damaged_cursor_is_refused(place: int, letter: str) -> None:
    cursor = cursor_of("by a", [5, "x" * 20])
    damaged = cursor[:place] + letter + cursor[place + 1 :]

    if damaged != cursor:
        with pytest.raises(PageCursorError):
            values_of("by a", damaged)


def test_a_cursor_of_another_order_is_refused() -> None:
    with pytest.raises(PageCursorError, match="another order"):
        values_of("by b", cursor_of("by a", [5]))


@pytest.mark.parametrize("value", [None, Mood.calm, [1], object()])
def test_what_no_cursor_can_hold_is_refused(value: object) -> None:
    with pytest.raises(PageCursorError):
        cursor_of("by a", [value])


def test_a_huge_text_is_no_cursor() -> None:
    with pytest.raises(PageCursorError, match="longer"):
        values_of("by a", "a" * 1_000_000)
