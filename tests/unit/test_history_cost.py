"""A check visits each node and edge a bounded number of times, whatever the history is like."""

from collections.abc import Callable

import pytest

from datapatterns.testing.histories import HistoryEvent, check_history
from tests.fixtures.histories import SimulatedDatabase, append, at_once, in_turn, ok, read

SIZES = (400, 800, 1600)


def clean(size: int) -> list[HistoryEvent]:
    return SimulatedDatabase(seed=1).run(size)


def full_of_write_skew(size: int) -> list[HistoryEvent]:
    return SimulatedDatabase(seed=1, snapshots=True, lists=4).run(size, clients=20)


def never_read(size: int) -> list[HistoryEvent]:
    """Readers times unread appends would be edges without end."""
    half = size // 2
    return at_once(
        *(ok(append("x", value)) for value in range(half)), *(ok(read("x")) for _ in range(half))
    )


def always_updated_from_nothing(size: int) -> list[HistoryEvent]:
    return at_once(*(ok(read("x"), append("x", value)) for value in range(size)))


def always_stale(size: int) -> list[HistoryEvent]:
    return in_turn(
        *(ok(append("x", value), append(f"y{value}", 1)) for value in range(size)), ok(read("x"))
    )


def one_long_cycle(size: int) -> list[HistoryEvent]:
    links = [ok(append(f"k{at}", 1), read(f"k{(at + 1) % size}", 1)) for at in range(size)]
    return at_once(*links)


def one_long_cycle_of_rw(size: int) -> list[HistoryEvent]:
    """G-single is looked for at every rw edge, and is not there."""
    links = [ok(append(f"k{at}", 1), read(f"k{(at + 1) % size}")) for at in range(size)]
    return at_once(*links, *(ok(read(f"k{at}", 1)) for at in range(size)))


@pytest.mark.parametrize(
    "make",
    [
        clean,
        full_of_write_skew,
        never_read,
        always_updated_from_nothing,
        always_stale,
        one_long_cycle,
        one_long_cycle_of_rw,
    ],
)
def test_the_steps_of_a_check_grow_with_the_history_and_no_faster(
    make: Callable[[int], list[HistoryEvent]],
) -> None:
    steps = [check_history(make(size)).steps for size in SIZES]

    assert steps[1] <= 2.5 * steps[0]
    assert steps[2] <= 2.5 * steps[1]
    assert steps[2] <= 200 * SIZES[2] + 100_000
