"""Random transactions, and the threads that run them against any store."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from threading import Barrier, Event, Lock

import pytest
from hypothesis import given

from datapatterns.errors import UnavailableError, VersionConflictError
from datapatterns.testing.histories import (
    ListOperation,
    ListWorkload,
    Recorder,
    check_history,
    list_transactions,
    run_list_append,
    verdict,
)


class Memory:
    """Lists in this process, one transaction at a time."""

    def __init__(self) -> None:
        self._lists: dict[int, list[int]] = {}
        self._lock = Lock()

    @contextmanager
    def begin(self) -> Iterator[None]:
        with self._lock:
            yield

    def append(self, _txn: None, key: int, value: int) -> None:
        self._lists.setdefault(key, []).append(value)

    def read(self, _txn: None, key: int) -> Sequence[int] | None:
        return self._lists.get(key)


class TornMemory(Memory):
    """Two at a time, and both have read before either appends."""

    def __init__(self) -> None:
        super().__init__()
        self._both_have_read = Barrier(2)

    @contextmanager
    def begin(self) -> Iterator[None]:
        yield

    def append(self, _txn: None, key: int, value: int) -> None:
        found = list(self._lists.get(key, []))
        self._both_have_read.wait()
        self._lists[key] = [*found, value]


def test_the_same_seed_gives_the_same_transactions() -> None:
    workload = ListWorkload()

    first, again, other = (
        list(islice(workload.transactions(seed=seed), 100)) for seed in (7, 7, 8)
    )

    assert first == again != other


def test_no_value_is_appended_to_a_list_twice_and_long_lists_retire() -> None:
    workload = ListWorkload(lists=2, operations_max=3, appends_for_each_list=5)

    drawn = list(islice(workload.transactions(seed=1), 300))

    assert {len(operations) for operations in drawn} == {1, 2, 3}
    appends = [(key, value) for each in drawn for name, key, value in each if name == "append"]
    lengths = Counter(key for key, _ in appends)
    assert len(set(appends)) == len(appends)
    assert set(lengths.values()) <= set(range(1, 6))
    assert sum(length < 5 for length in lengths.values()) <= 2


@pytest.mark.parametrize(("share", "names"), [(0, {"append"}), (1, {"r"}), (0.5, {"append", "r"})])
def test_the_share_of_reads_can_be_chosen(share: float, names: set[str]) -> None:
    workload = ListWorkload(read_share=share)

    drawn = islice(workload.transactions(seed=1), 50)

    assert {name for operations in drawn for name, _, _ in operations} == names


@given(list_transactions(lists=2, operations_max=3, transactions_max=5))
def test_transactions_of_the_strategy_can_be_run_and_checked(
    transactions: list[list[ListOperation]],
) -> None:
    memory = Memory()

    history = run_list_append(memory, memory.begin, transactions=transactions, clients=2)

    assert not verdict(history, model="strict-serializable")


def test_every_list_is_read_in_the_end_by_a_client_of_its_own() -> None:
    memory, settled = Memory(), []
    transactions: list[list[ListOperation]] = [[("append", 1, 1)], [("append", 2, 1)]]

    history = run_list_append(
        memory,
        memory.begin,
        transactions=transactions,
        clients=2,
        settle=lambda: settled.append("nobody writes any more"),
    )

    last = [event for event in history if event.process == history[-1].process]
    assert [event.value for event in last if event.type == "ok"] == [
        [("r", 1, [1])],
        [("r", 2, [1])],
    ]
    assert settled == ["nobody writes any more"]


def test_a_lost_update_between_two_threads_is_caught() -> None:
    torn = TornMemory()

    history = run_list_append(
        torn, torn.begin, transactions=[[("append", 1, 1)], [("append", 1, 2)]], clients=2
    )

    assert "stale-read" in check_history(history).anomalies


def test_an_expected_error_is_a_failed_transaction_and_the_client_goes_on() -> None:
    class Refusing(Memory):
        def append(self, txn: None, key: int, value: int) -> None:
            if value == 1:
                raise VersionConflictError("list-1", expected=0, found=1)
            super().append(txn, key, value)

    store, recorder = Refusing(), Recorder()

    history = run_list_append(
        store,
        store.begin,
        transactions=[[("append", 1, 1)], [("append", 1, 2)]],
        clients=1,
        recorder=recorder,
    )

    assert [event.type for event in history] == ["invoke", "fail", "invoke", "ok", "invoke", "ok"]
    assert history == recorder.history()
    assert not check_history(history)


class ReadsThatFail(Memory):
    """Loses so many transactions that read before one gets through."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def read(self, txn: None, key: int) -> Sequence[int] | None:
        self._times -= 1
        if self._times >= 0:
            raise UnavailableError("the connection is gone")
        return super().read(txn, key)


def test_a_last_read_that_finds_a_broken_connection_in_the_pool_is_made_again() -> None:
    store = ReadsThatFail(times=3)

    history = run_list_append(store, store.begin, transactions=[[("append", 1, 1)]], clients=1)

    assert [event.type for event in history if event.type != "invoke"] == [
        "ok",
        *["fail"] * 3,
        "ok",
    ]
    assert history[-1].value == [("r", 1, [1])]


def test_lists_that_cannot_be_read_in_the_end_are_an_error_not_a_clean_history() -> None:
    store = ReadsThatFail(times=100)

    with pytest.raises(UnavailableError):
        run_list_append(store, store.begin, transactions=[[("append", 1, 1)]], clients=1)


def test_threads_end_when_the_one_that_waits_for_them_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, begun = Memory(), Event()

    def interrupted(_future: Future[None], _timeout: float | None = None) -> None:
        assert begun.wait(10)
        raise KeyboardInterrupt

    def endless() -> Iterator[list[ListOperation]]:
        for value in range(1_000_000_000):
            yield [("append", 1, value)]
            begun.set()

    monkeypatch.setattr(Future, "result", interrupted)

    with pytest.raises(KeyboardInterrupt):
        run_list_append(store, store.begin, transactions=endless(), clients=2)


def test_any_other_error_ends_the_run_and_is_raised() -> None:
    class Broken(Memory):
        def append(self, txn: None, key: int, value: int) -> None:
            if value == 3:
                raise ZeroDivisionError
            super().append(txn, key, value)

    store, recorder = Broken(), Recorder()
    endless = ([("append", 1, value)] for value in range(1_000_000_000))

    with pytest.raises(ZeroDivisionError):
        run_list_append(
            store,
            store.begin,
            transactions=endless,  # type: ignore[arg-type]  # inferred too narrowly
            clients=2,
            recorder=recorder,
        )

    assert "fail" in {event.type for event in recorder.history()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"lists": 0},
        {"operations_max": 0},
        {"appends_for_each_list": 0},
        {"read_share": 1.5},
        {"read_share": float("nan")},
    ],
)
def test_a_workload_of_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"at least|from 0 to 1"):
        ListWorkload(**wrong)  # type: ignore[arg-type]
