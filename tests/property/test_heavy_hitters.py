"""A sketch knows little, and what it says is true."""

from collections import Counter
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.sharding.seeing.heavy_hitters import HeavyHitters

# Few keys get most of the hits, so that counters are dropped and taken again.
keys = st.integers(0, 9) | st.integers(0, 200)
streams = st.lists(st.tuples(keys, st.integers(1, 4)), min_size=5, max_size=400)
sizes = st.integers(1, 12)


def sketched(stream: list[tuple[int, int]], size: int) -> HeavyHitters[int]:
    sketch = HeavyHitters[int](size)
    for key, hits in stream:
        sketch.add(key, hits, busy_us=hits)
    return sketch


def counted(stream: list[tuple[int, int]]) -> Counter[int]:
    true: Counter[int] = Counter()
    for key, hits in stream:
        true[key] += hits
    return true


def check_bounds(sketch: HeavyHitters[int], true: Counter[int]) -> None:
    assert sketch.total == true.total()
    held = {hitter.key: hitter for hitter in sketch.top(1000)}
    assert len(held) <= sketch.size
    for key, hits in true.items():
        if key in held:
            assert held[key].hits - held[key].max_error <= hits <= held[key].hits
            assert held[key].busy_us <= hits
        else:
            assert hits <= sketch.floor
    assert all(hitter.hits - hitter.max_error <= true[key] for key, hitter in held.items())


def check_promise(sketch: HeavyHitters[int], true: Counter[int]) -> None:
    held = {*sketch.keys()}
    assert all(key in held for key, hits in true.items() if hits * sketch.size > true.total())


@given(stream=streams, size=sizes)
def test_the_bounds_hold_and_no_frequent_key_is_missed(
    stream: list[tuple[int, int]], size: int
) -> None:
    sketch, true = sketched(stream, size), counted(stream)

    check_bounds(sketch, true)
    check_promise(sketch, true)


@given(parts=st.lists(streams, min_size=2, max_size=5), size=sizes, more=streams)
def test_sketches_add_up(
    parts: list[list[tuple[int, int]]], size: int, more: list[tuple[int, int]]
) -> None:
    merged = reduce(HeavyHitters[int].merged, [sketched(part, size) for part in parts])
    true = reduce(Counter[int].__add__, map(counted, parts))

    check_bounds(merged, true)
    check_promise(merged, true)

    for key, hits in more:
        merged.add(key, hits)
    check_bounds(merged, true + counted(more))


@given(stream=streams, size=sizes, kept=sizes, more=streams)
def test_what_is_left_out_of_a_sketch_stays_within_its_bounds(
    stream: list[tuple[int, int]], size: int, kept: int, more: list[tuple[int, int]]
) -> None:
    sketch, true = sketched(stream, size), counted(stream)

    fewer = sketch.trimmed(kept)

    check_bounds(fewer, true)
    assert all(hitter.hits * size > true.total() for hitter in fewer.top(1000))
    for key, hits in more:
        fewer.add(key, hits)
    check_bounds(fewer, true + counted(more))


def test_few_keys_are_counted_exactly() -> None:
    sketch = sketched([(1, 3), (2, 1), (1, 1)], 2)

    assert [(each.key, each.hits, each.max_error) for each in sketch.top(5)] == [
        (1, 4, 0),
        (2, 1, 0),
    ]
    assert sketch.floor == 0


def test_nothing_to_count_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        HeavyHitters[int](0)
