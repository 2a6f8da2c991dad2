"""Checking a history, beside only reading its file: `json.loads` of each line.

Whoever asks what a history means has to read it. So that is the limit, and the question is how
many times as long the answer takes.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.interleaving import Claim, Contestant
from datapatterns.testing.histories import (
    HistoryEvent,
    ListOperation,
    ListWorkload,
    check_history,
    dump_history,
    load_history,
)
from datapatterns.testing.histories.events import Key, Value

TRANSACTIONS = 20_000
CLIENTS = 10


@contextmanager
def claim() -> Iterator[Claim]:
    """A clean history of 20,000 transactions by 10 clients, in a file of JSON lines."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "history.jsonl")
        dump_history(simulated_history(TRANSACTIONS), path)
        yield Claim(
            "history check",
            "transactions",
            [
                Contestant("load_history and check_history", "ours", _ours(path)),
                Contestant("json.loads of each line", "limit", _limit(path)),
            ],
        )


def _ours(path: Path) -> Callable[[], int]:
    def run() -> int:
        report = check_history(load_history(path))
        if report:
            raise AssertionError(report)
        return report.transactions

    return run


def _limit(path: Path) -> Callable[[], int]:
    def run() -> int:
        with path.open() as file:
            events = [json.loads(line) for line in file]
        return len(events) // 2

    return run


def simulated_history(transactions: int) -> list[HistoryEvent]:
    """Return what a strictly serializable database does with clients that always overlap."""
    lists: dict[Key, list[Value]] = {}
    workload = ListWorkload(lists=20, appends_for_each_list=64)
    planned = islice(workload.transactions(seed=1), transactions)
    running: list[tuple[int, list[ListOperation]]] = []
    events: list[HistoryEvent] = []
    for number, operations in enumerate(planned):
        if len(running) == CLIENTS:
            _end(events, lists, *running.pop(0))
        running.append((number % CLIENTS, operations))
        events.append(HistoryEvent(len(events), number % CLIENTS, "invoke", operations))
    for process, operations in running:
        _end(events, lists, process, operations)
    return events


def _end(
    events: list[HistoryEvent],
    lists: dict[Key, list[Value]],
    process: int,
    operations: list[ListOperation],
) -> None:
    done: list[ListOperation] = []
    for name, key, value in operations:
        values = lists.setdefault(key, [])
        if name == "r":
            done.append((name, key, list(values)))
        elif isinstance(value, int):
            values.append(value)
            done.append((name, key, value))
    events.append(HistoryEvent(len(events), process, "ok", done))
