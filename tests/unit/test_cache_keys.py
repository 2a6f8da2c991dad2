from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from uuid import UUID

import pytest

from datapatterns.cache_aside.keys import checked_name, entry_of
from datapatterns.errors import CacheKeyError


def test_one_part_is_a_tuple_of_one() -> None:
    assert entry_of("product", 5) == entry_of("product", (5,))


def test_the_type_of_a_part_belongs_to_the_key() -> None:
    parts = (1, "1", b"1", True, None, "N", "T", date(1, 1, 1), UUID(int=1), "i1", "")

    assert len({entry_of("product", part) for part in parts}) == len(parts)


def test_an_enum_is_the_string_that_the_database_stores() -> None:
    class Size(StrEnum):
        SMALL = "small"

    class OldSize(str, Enum):  # noqa: UP042 -- its str() is its name
        SMALL = "small"

    assert entry_of("product", Size.SMALL) == entry_of("product", "small")
    assert entry_of("product", OldSize.SMALL) == entry_of("product", "small")


@pytest.mark.parametrize(
    "part",
    [1.0, Decimal("1.00"), datetime(2026, 1, 1, tzinfo=UTC), ["a"], ("a", ("b",)), "\ud800", 1j],
)
def test_parts_that_are_equal_without_being_identical_are_refused(part: object) -> None:
    with pytest.raises(CacheKeyError):
        entry_of("product", part)  # type: ignore[arg-type]  # that is the point


def test_a_long_key_is_hashed_and_stays_its_own() -> None:
    first, second = entry_of("page", "x" * 10_000), entry_of("page", "x" * 9_999 + "y")

    assert max(len(first), len(second)) < 60
    assert first != second


def test_no_key_moves_its_entry_to_another_slot() -> None:
    entry = entry_of("product", "}{a}:\r\n\0")

    assert not set(entry) & set("{}\r\n\0")


@pytest.mark.parametrize("name", ["", "a:b", "a{b", "x" * 61, "ü"])
def test_a_name_that_could_be_mistaken_is_refused(name: str) -> None:
    with pytest.raises(CacheKeyError):
        checked_name(name)
