"""Registers, sets, sequences and banks: what is possible and what is not."""

import pytest

from datapatterns.errors import HistoryError
from datapatterns.testing.histories import (
    RegisterCall,
    check_bank,
    check_register,
    check_sequence,
    check_set,
)


def write(value: int, begin: float, end: float | None, key: str = "k") -> RegisterCall:
    return RegisterCall(key, "write", value, begin, end)


def read(value: int | None, begin: float, end: float, key: str = "k") -> RegisterCall:
    return RegisterCall(key, "read", value, begin, end)


def swap(expected: int, value: int, begin: float, end: float | None) -> RegisterCall:
    return RegisterCall("k", "swap", value, begin, end, expected)


@pytest.mark.parametrize(
    "calls",
    [
        [],
        [read(None, 0, 1)],
        [write(1, 0, 1), read(1, 2, 3)],
        [write(1, 0, 9), read(None, 1, 2), read(1, 3, 4)],
        [write(1, 0, 9), write(2, 0, 9), read(2, 1, 2), read(1, 3, 4)],
        [write(1, 0, None), read(None, 1, 2), read(1, 3, 4)],
        [write(1, 0, None), read(None, 1, 2)],
        [write(1, 0, 1), read(1, 1, 2), read(None, 1, 2)],
        [write(1, 0, 1), swap(1, 2, 2, 3), read(2, 4, 5)],
        [write(1, 0, 1), swap(1, 2, 2, None), read(1, 4, 5), read(2, 6, 7)],
    ],
    ids=str,
)
def test_calls_that_some_order_explains_are_linearizable(calls: list[RegisterCall]) -> None:
    assert check_register(calls) == {}


@pytest.mark.parametrize(
    ("calls", "wrong"),
    [
        ([write(1, 0, 1), read(None, 2, 3)], 1),
        ([write(1, 0, 9), read(1, 1, 2), read(None, 3, 4)], 2),
        ([write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)], 2),
        ([write(1, 0, None), read(1, 1, 2), read(None, 3, 4)], 2),
        ([write(1, 0, 9), write(2, 0, 9), read(2, 1, 2), read(1, 3, 4), read(2, 5, 6)], 4),
        ([read(1, 0, 1), write(1, 2, 3)], 0),
        ([write(1, 0, 1), swap(1, 2, 2, 9), swap(1, 3, 2, 9)], 2),
    ],
    ids=str,
)
def test_the_first_call_that_no_order_explains_is_named(
    calls: list[RegisterCall], wrong: int
) -> None:
    assert check_register(calls)["k"].call == calls[wrong]


def test_the_explanation_says_what_the_value_can_have_been() -> None:
    calls = [write(1, 0, 1), write(2, 2, 9), read(3, 4, 5)]

    violation = check_register(calls)["k"]

    assert violation.possible == (1, 2)
    assert str(violation) == (
        "read 3 of 'k' between 4 and 5 fits into no order of the calls; the value can have been"
        " 1, 2 by then"
    )


def test_registers_are_checked_one_by_one() -> None:
    calls = [write(1, 0, 1, "a"), read(1, 2, 3, "a"), write(1, 0, 1, "b"), read(None, 2, 3, "b")]

    assert list(check_register(calls)) == ["b"]


def test_a_register_that_begins_with_a_value_is_read_with_it() -> None:
    assert check_register([read(5, 0, 1)], initial=5) == {}
    assert check_register([read(None, 0, 1)], initial=5)


def test_too_many_overlapping_calls_are_refused_and_one_fewer_is_checked() -> None:
    calls = [write(value, value, 100) for value in range(5)]

    assert check_register(calls, concurrency_max=5) == {}
    with pytest.raises(HistoryError, match="more than 4 calls of register 'k' overlap at 4"):
        check_register(calls, concurrency_max=4)


def test_calls_of_unknown_outcome_overlap_all_later_ones() -> None:
    calls = [write(value, 2 * value, None) for value in range(5)]

    with pytest.raises(HistoryError, match="unknown outcome included"):
        check_register(calls, concurrency_max=4)


def test_many_calls_that_do_not_overlap_are_no_burden() -> None:
    calls = [write(value, 2 * value, 2 * value + 1) for value in range(20_000)]

    assert check_register([*calls, read(19_999, 50_000, 50_001)]) == {}


def test_a_set_loses_nothing_acknowledged_and_keeps_nothing_failed() -> None:
    assert check_set(acknowledged=[1], failed=[2], final=[1, 9]) == {}
    assert check_set(acknowledged=[1], failed=[], final=[]) == {"lost": {1}}
    assert check_set(acknowledged=[], failed=[2], final=[2]) == {"resurrected": {2}}
    assert check_set(acknowledged=[3], failed=[3], final=[3]) == {}


def test_a_subscriber_gets_each_position_once_and_in_order() -> None:
    assert check_sequence([1, 2, 5], [1, 2, 5]) == {}
    assert check_sequence([], []) == {}
    assert check_sequence([1, 5], [1, 2, 5]) == {"gap": [2]}
    assert check_sequence([1, 1], [1]) == {"duplicate": [1]}
    assert check_sequence([5, 1], [1, 5]) == {"regression": [1]}
    assert check_sequence([1, 7], [1]) == {"phantom": [7]}


def test_a_bank_keeps_its_total_and_its_balances_above_zero() -> None:
    assert check_bank([{"a": 1, "b": 9}], total=10) == {}
    assert check_bank([{"a": 1, "b": 8}], total=10) == {"wrong-total": [{"a": 1, "b": 8}]}
    assert check_bank([{"a": -1, "b": 11}], total=10) == {"negative-balance": [{"a": -1, "b": 11}]}
    assert check_bank([{"a": -1, "b": 11}], total=10, overdraft=True) == {}


@pytest.mark.parametrize(
    ("name", "invoked", "returned", "reason"),
    [
        ("cas", 0, 1, "'cas' is none of read, write, swap"),
        ("read", 5, 3, "from 5 to 3 ends before it begins"),
        ("read", float("nan"), None, "from nan to nan"),
    ],
)
def test_a_call_that_cannot_have_been_is_refused(
    name: str, invoked: float, returned: float | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        RegisterCall("k", name, 1, invoked, returned)  # type: ignore[arg-type]
