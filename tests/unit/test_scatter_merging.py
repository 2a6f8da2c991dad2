from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.scatter.merging import merged_groups, merged_rows
from datapatterns.sharding.scatter.ordering import OrderKey

NAN = float("nan")


def ordered(values: list[object], key: OrderKey) -> list[object]:
    rows = [[value] for value in values]
    return [row[0] for row in merged_rows([rows[::2], rows[1::2]], order=[key], distinct=None)]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (OrderKey(0), [1, 2, 3, None]),
        (OrderKey(0, nulls_first=True), [None, 1, 2, 3]),
        (OrderKey(0, descending=True), [3, 2, 1, None]),
        (OrderKey(0, descending=True, nulls_first=True), [None, 3, 2, 1]),
    ],
)
def test_null_goes_where_it_is_told_to(key: OrderKey, expected: list[int | None]) -> None:
    assert ordered([2, None, 3, 1], key) == expected


def test_not_a_number_is_greater_than_all_numbers() -> None:
    assert ordered([NAN, 1.0, float("inf")], OrderKey(0))[:2] == [1.0, float("inf")]


def test_several_columns_order_one_after_the_other() -> None:
    rows = [(1, 5), (2, 5), (1, 7)]

    merged = merged_rows([rows], order=[OrderKey(0), OrderKey(1, descending=True)], distinct=None)

    assert merged == [(1, 7), (1, 5), (2, 5)]


def test_an_hour_that_comes_twice_is_ordered_by_the_moment() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    first = datetime(2024, 10, 27, 0, 50, tzinfo=UTC).astimezone(berlin)
    second = datetime(2024, 10, 27, 1, 10, tzinfo=UTC).astimezone(berlin)
    assert second.time() < first.time()

    assert ordered([second, first], OrderKey(0)) == [first, second]


@pytest.mark.parametrize("value", ["text", timedelta(1), [1], {"a": 1}])
def test_values_that_python_orders_otherwise_are_refused(value: object) -> None:
    with pytest.raises(UnmergeableQueryError, match="comparing values"):
        ordered([value, value], OrderKey(0))


def test_text_is_ordered_by_its_bytes_if_the_servers_do_so() -> None:
    assert ordered(["b", "ä", "B", "😀"], OrderKey(0, text=True)) == ["B", "b", "ä", "😀"]


def test_equal_rows_of_two_shards_are_one() -> None:
    parts = [[("a", NAN), ("b", None)], [("a", NAN), ("b", None), ("b", 1.0)]]

    merged = merged_rows(parts, order=[], distinct=2)

    assert [row[0] for row in merged] == ["a", "b", "b"]


def test_groups_are_merged_by_what_they_are_about() -> None:
    rows = [("a", 2, 5, 1, 9, True), ("b", 1, None, 2, 2, None), ("a", 3, 7, 0, 10, False)]
    aggregates = [(1, "count"), (2, "sum"), (3, "min"), (4, "max"), (5, "bool_and")]

    merged = merged_groups(rows, group_by=[0], aggregates=aggregates)  # type: ignore[arg-type]  # literals in a list

    assert merged == [["a", 5, 12, 0, 10, False], ["b", 1, None, 2, 2, None]]


def test_sums_keep_more_digits_than_a_decimal_context_does() -> None:
    rows = [[Decimal("99999999999999999999999999999.5")], [Decimal("0.0000000001")]]

    ((total,),) = merged_groups(rows, group_by=[], aggregates=[(0, "sum")])

    assert str(total) == "99999999999999999999999999999.5000000001"


def test_infinities_of_both_signs_make_no_number() -> None:
    rows = [[Decimal("Infinity")], [Decimal("-Infinity")]]

    ((total,),) = merged_groups(rows, group_by=[], aggregates=[(0, "sum")])

    assert total.is_nan()


@pytest.mark.parametrize(
    ("values", "clause"), [([0.1, 0.2], "sum.. of float"), ([2**63 - 1, 1], "beyond bigint")]
)
def test_sums_that_would_differ_are_refused(values: list[float], clause: str) -> None:
    with pytest.raises(UnmergeableQueryError, match=clause):
        merged_groups([[value] for value in values], group_by=[], aggregates=[(0, "sum")])
