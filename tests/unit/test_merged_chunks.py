from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.scatter.ordering import OrderKey, merged_chunks, ordered_rows

ORDERS = [
    [OrderKey(0)],
    [OrderKey(0, descending=True)],
    [OrderKey(0), OrderKey(1)],
    [OrderKey(0, descending=True), OrderKey(1, nulls_first=True)],
    [OrderKey(1, descending=True, nulls_first=True), OrderKey(0)],
]
values = st.none() | st.integers(-2, 2)
rows = st.lists(st.tuples(values, values), max_size=40)


@given(parts=st.lists(rows, max_size=4), order=st.sampled_from(ORDERS), size=st.integers(1, 7))
def test_chunks_merge_into_the_order_of_all(
    parts: list[list[Any]], order: list[OrderKey], size: int
) -> None:
    ordered = [ordered_rows(part, order) for part in parts]
    sources = [iter([part[at : at + size] for at in range(0, len(part), size)]) for part in ordered]

    found = [row for chunk in merged_chunks(sources, order) for row in chunk]

    everything = ordered_rows([row for part in parts for row in part], order)
    by_order = [[row[key.position] for key in order] for row in found]
    assert by_order == [[row[key.position] for key in order] for row in everything]
    assert sorted(map(repr, found)) == sorted(map(repr, everything))


def test_values_that_python_orders_otherwise_are_refused() -> None:
    with pytest.raises(UnmergeableQueryError):
        [*merged_chunks([iter([[("b",)]]), iter([[("a",)]])], [OrderKey(0)])]


def test_no_more_is_held_than_a_chunk_of_each_source() -> None:
    asked: list[int] = []

    def source(number: int) -> Iterator[list[tuple[int]]]:
        for first in range(number, 40, 4):
            asked.append(first)
            yield [(first,), (first + 2,)]

    chunks = merged_chunks([source(0), source(1)], [OrderKey(0)])
    taken = [next(chunks) for _ in range(3)]

    assert [row for chunk in taken for row in chunk] == [(0,), (1,), (2,), (3,), (4,), (5,), (6,)]
    assert max(asked) <= 9
