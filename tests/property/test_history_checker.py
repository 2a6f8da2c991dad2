"""The checker against databases whose consistency is known, and against trying every order."""

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.testing.histories import (
    HistoryEvent,
    ListOperation,
    check_history,
    list_transactions,
    verdict,
)
from datapatterns.testing.histories.events import EventType, Key, Value
from tests.fixtures.histories import SimulatedDatabase, then

Damage = Callable[[list[HistoryEvent], random.Random], list[HistoryEvent]]
Lists = dict[Key, list[Value]]


@given(seed=st.integers(0, 2**32), lists=st.integers(2, 20), clients=st.integers(1, 20))
def test_a_strictly_serializable_database_is_clean(seed: int, lists: int, clients: int) -> None:
    database = SimulatedDatabase(seed=seed, lists=lists)

    history = then(database.run(150, clients=clients), database.final_reads())

    assert not check_history(history)


@given(seed=st.integers(0, 2**32), lists=st.integers(2, 20))
def test_snapshot_isolation_shows_nothing_that_it_forbids(seed: int, lists: int) -> None:
    database = SimulatedDatabase(seed=seed, lists=lists, snapshots=True)

    history = then(database.run(150), database.final_reads())

    assert not verdict(history, model="strong-snapshot-isolation")


def test_write_skew_under_snapshot_isolation_is_found_in_nearly_every_run() -> None:
    reports = [
        check_history(SimulatedDatabase(seed=seed, lists=6, snapshots=True).run(300))
        for seed in range(20)
    ]

    assert sum("G2-item" in report.anomalies for report in reports) >= 19


@st.composite
def small_histories(draw: st.DrawFn) -> list[HistoryEvent]:
    """Return transactions that ran at their ends, or on snapshots of their beginnings.

    Up to two reads are cut or extended afterwards, and the moments can be shuffled. In the end
    every list is read.
    """
    planned = draw(list_transactions(lists=2, operations_max=3, transactions_max=4))
    twice = [*range(len(planned)), *range(len(planned))]
    moments = draw(st.permutations(twice))
    done, lists = _run(planned, moments, on_snapshots=draw(st.booleans()))
    final: list[ListOperation] = [("r", key, list(values)) for key, values in lists.items()]
    for _ in range(draw(st.integers(0, 2))):
        _change_a_read(done, lists, draw)
    if draw(st.booleans()):
        moments = draw(st.permutations(twice))
    return _events([*done, final], [*moments, len(planned), len(planned)])


def _run(
    planned: Sequence[Sequence[ListOperation]], moments: Iterable[int], *, on_snapshots: bool
) -> tuple[list[list[ListOperation]], Lists]:
    lists: Lists = {}
    snapshots: dict[int, Lists] = {}
    done: list[list[ListOperation]] = [[] for _ in planned]
    for number in moments:
        if number not in snapshots:
            snapshots[number] = {key: list(values) for key, values in lists.items()}
        elif on_snapshots:
            done[number] = _executed(planned[number], snapshots[number])
            _executed([each for each in planned[number] if each[0] == "append"], lists)
        else:
            done[number] = _executed(planned[number], lists)
    return done, lists


def _executed(operations: Sequence[ListOperation], lists: Lists) -> list[ListOperation]:
    done: list[ListOperation] = []
    for name, key, value in operations:
        if name == "r":
            done.append((name, key, list(lists.get(key, []))))
        else:
            assert isinstance(value, int)
            lists.setdefault(key, []).append(value)
            done.append((name, key, value))
    return done


def _change_a_read(
    transactions: Sequence[list[ListOperation]], lists: Lists, draw: st.DrawFn
) -> None:
    reads = [
        (operations, place)
        for operations in transactions
        for place, (name, _, _) in enumerate(operations)
        if name == "r"
    ]
    if reads:
        operations, place = draw(st.sampled_from(reads))
        _, key, _ = operations[place]
        whole = lists.get(key, [])
        operations[place] = ("r", key, whole[: draw(st.integers(0, len(whole)))])


def _events(
    transactions: Sequence[list[ListOperation]], moments: Iterable[int]
) -> list[HistoryEvent]:
    begun: set[int] = set()
    events = []
    for index, number in enumerate(moments):
        how: EventType = "ok" if number in begun else "invoke"
        done = transactions[number]
        planned: list[ListOperation] = [(n, k, None if n == "r" else v) for n, k, v in done]
        events.append(HistoryEvent(index, number, how, done if how == "ok" else planned))
        begun.add(number)
    return events


def _explained(history: Sequence[HistoryEvent], *, in_time: bool) -> bool:
    """Return whether some order of the transactions gives what they read: try them all."""
    done = [event for event in history if event.type == "ok"]
    begun = {event.process: event.index for event in history if event.type == "invoke"}
    for order in permutations(done):
        if in_time and any(
            later.index < begun[earlier.process]
            for place, earlier in enumerate(order)
            for later in order[place + 1 :]
        ):
            continue
        lists: Lists = {}
        if all(_executed(event.value or [], lists) == event.value for event in order):
            return True
    return False


@given(small_histories())
def test_a_history_is_serializable_exactly_if_some_order_explains_it(
    history: list[HistoryEvent],
) -> None:
    assert bool(verdict(history, model="serializable")) is not _explained(history, in_time=False)


@given(small_histories())
def test_a_history_is_strictly_serializable_exactly_if_some_order_in_time_explains_it(
    history: list[HistoryEvent],
) -> None:
    found = verdict(history, model="strict-serializable")

    assert bool(found) is not _explained(history, in_time=True)


@given(small_histories())
def test_a_history_is_snapshot_isolated_exactly_if_some_snapshots_and_commits_explain_it(
    history: list[HistoryEvent],
) -> None:
    found = verdict(history, model="snapshot-isolation")

    assert bool(found) is not _Snapshots(history, in_time=False).explain()


@given(small_histories())
def test_snapshots_in_time_explain_exactly_what_is_strongly_snapshot_isolated(
    history: list[HistoryEvent],
) -> None:
    found = verdict(history, model="strong-snapshot-isolation")

    assert bool(found) is not _Snapshots(history, in_time=True).explain()


class _Snapshots:
    """Tries every order of snapshots and commits; of two that overlap one writes a list."""

    def __init__(self, history: Sequence[HistoryEvent], *, in_time: bool) -> None:
        *self._done, self._final = [event for event in history if event.type == "ok"]
        begun = {event.process: event.index for event in history if event.type == "invoke"}
        self._must_precede = {
            event.process: {
                other.process
                for other in self._done
                if in_time and other.index < begun[event.process]
            }
            for event in self._done
        }

    def explain(self) -> bool:
        return self._go_on({}, {}, frozenset())

    def _go_on(self, lists: Lists, open_: dict[int, Lists], committed: frozenset[int]) -> bool:
        if len(committed) == len(self._done):
            return _executed(self._final.value or [], dict(lists)) == self._final.value
        for event in self._done:
            number = event.process
            if number in committed or not self._must_precede[number] <= committed:
                continue
            if number not in open_:
                taken = {**open_, number: dict(lists)}
                if self._go_on(lists, taken, committed):
                    return True
            elif (after := self._committed(event, lists, open_[number])) is not None and (
                self._go_on(after, open_, committed | {number})
            ):
                return True
        return False

    def _committed(self, event: HistoryEvent, lists: Lists, snapshot: Lists) -> Lists | None:
        view = {key: list(values) for key, values in snapshot.items()}
        if _executed(event.value or [], view) != event.value:
            return None
        written = {key for name, key, _ in event.value or [] if name == "append"}
        if any(lists.get(key) != snapshot.get(key) for key in written):
            return None
        return {**lists, **{key: view[key] for key in written}}


def _replace_a_read(
    history: list[HistoryEvent],
    draw: random.Random,
    change: Callable[[list[Value]], list[Value]],
) -> list[HistoryEvent]:
    reads = [
        (at, place, list(values))
        for at, event in enumerate(history)
        if event.type == "ok" and event.process >= 0
        for place, (_, _, values) in enumerate(event.value or [])
        if isinstance(values, list) and len(values) > 1
    ]
    at, place, values = draw.choice(reads)
    operations = list(history[at].value or [])
    operations[place] = ("r", operations[place][1], change(values))
    return [*history[:at], _with(history[at], operations), *history[at + 1 :]]


def _replace_every_read(
    history: list[HistoryEvent], change: Callable[[Key, list[Value]], list[Value]]
) -> list[HistoryEvent]:
    def changed(operation: ListOperation) -> ListOperation:
        name, key, values = operation
        return (name, key, change(key, values)) if isinstance(values, list) else operation

    return [_with(event, [changed(each) for each in event.value or []]) for event in history]


def _with(event: HistoryEvent, operations: list[ListOperation]) -> HistoryEvent:
    return HistoryEvent(event.index, event.process, event.type, operations)


def _an_append(history: list[HistoryEvent], draw: random.Random) -> tuple[HistoryEvent, Key, Value]:
    appends = [
        (event, key, value)
        for event in history
        if event.type == "ok"
        for name, key, value in event.value or []
        if name == "append" and isinstance(value, int)
    ]
    return draw.choice(appends)


def one_stale_read(history: list[HistoryEvent], draw: random.Random) -> list[HistoryEvent]:
    return _replace_a_read(history, draw, lambda values: values[: draw.randrange(len(values))])


def two_values_swapped(history: list[HistoryEvent], draw: random.Random) -> list[HistoryEvent]:
    def swap(values: list[Value]) -> list[Value]:
        at = draw.randrange(len(values) - 1)
        return [*values[:at], values[at + 1], values[at], *values[at + 2 :]]

    return _replace_a_read(history, draw, swap)


def a_lost_append(history: list[HistoryEvent], draw: random.Random) -> list[HistoryEvent]:
    _, lost_from, lost = _an_append(history, draw)
    return _replace_every_read(
        history,
        lambda key, values: [v for v in values if (key, v) != (lost_from, lost)],
    )


def an_append_applied_twice(history: list[HistoryEvent], draw: random.Random) -> list[HistoryEvent]:
    _, doubled_in, doubled = _an_append(history, draw)

    def double(key: Key, values: list[Value]) -> list[Value]:
        return [each for v in values for each in [v] * (1 + ((key, v) == (doubled_in, doubled)))]

    return _replace_every_read(history, double)


def a_rollback_that_shows(history: list[HistoryEvent], draw: random.Random) -> list[HistoryEvent]:
    event, _, _ = _an_append(history, draw)
    failed = HistoryEvent(event.index, event.process, "fail", event.value)
    return [failed if each is event else each for each in history]


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        (one_stale_read, 38),
        (two_values_swapped, 40),
        (a_lost_append, 38),
        (an_append_applied_twice, 40),
        (a_rollback_that_shows, 40),
    ],
)
def test_one_fault_in_a_good_history_is_found_in_nearly_every_run(
    damage: Damage, least: int
) -> None:
    found = 0
    for seed in range(40):
        database = SimulatedDatabase(seed=seed, lists=6)
        history = then(database.run(300), database.final_reads())
        found += bool(check_history(damage(history, random.Random(seed))))  # noqa: S311 -- seeded

    assert found >= least
