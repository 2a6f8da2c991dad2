"""Which anomalies does a history prove?"""

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from datapatterns.testing.histories.cycles import find_cycles
from datapatterns.testing.histories.events import HistoryEvent, Transaction
from datapatterns.testing.histories.explaining import describe, explain
from datapatterns.testing.histories.graph import build_graph
from datapatterns.testing.histories.levels import ConsistencyModel, forbidden_by
from datapatterns.testing.histories.lists import observe
from datapatterns.testing.histories.pairing import pair
from datapatterns.testing.histories.sessions import lost_updates, sessions, stale_reads
from datapatterns.testing.histories.walking import Steps


@dataclass(frozen=True, slots=True)
class Witness:
    """One proof of an anomaly.

    Attributes:
        transactions: Those that take part, by the index of the event that began each; the
            explanation calls the one that event 7 began T7.
        explanation: What they did, and why no order of them allows it.
    """

    anomaly: str
    transactions: tuple[int, ...]
    explanation: str

    def __str__(self) -> str:
        return f"{self.anomaly}:\n{self.explanation}"


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """What a history proves. True if that is any anomaly.

    An empty report means that this history shows none; it does not prove that there are none.

    Attributes:
        anomalies: For each anomaly some witnesses, those of few transactions first.
        transactions: How many were checked.
        steps: How many nodes and edges of the graph were visited to that end.
    """

    anomalies: Mapping[str, tuple[Witness, ...]]
    transactions: int
    steps: int

    def __bool__(self) -> bool:
        return bool(self.anomalies)

    def __str__(self) -> str:
        if not self.anomalies:
            return f"no anomaly in {self.transactions} transactions"
        names = ", ".join(self.anomalies)
        first = [str(witnesses[0]) for witnesses in self.anomalies.values()]
        return "\n\n".join([f"{names} in {self.transactions} transactions", *first])

    __repr__ = __str__  # what pytest shows of `assert not report`


class InconsistentHistoryError(AssertionError):
    """A history shows what its consistency level forbids.

    Attributes:
        report: What it shows.
    """

    def __init__(self, report: HistoryReport, *, model: ConsistencyModel) -> None:
        super().__init__(report, model)
        self.report = report
        self.model = model

    def __str__(self) -> str:
        return f"this is not {self.model}: {self.report}"


def check_history(history: Iterable[HistoryEvent], *, limit: int = 4) -> HistoryReport:
    """Return every anomaly that a list-append history proves, each with up to ``limit`` witnesses.

    The method is Elle's (Kingsbury and Alvaro, 2020): reads of a list that only grows tell the
    order of its versions, this tells which transaction depends on which, and a cycle of
    dependencies is an anomaly in the sense of Adya. Real time and the order of each process are
    dependencies, too, and give the names with a suffix.

    The time and memory that it takes are linear in the events and in the lists that were read.
    Cyclic garbage collection is off meanwhile, in the whole process: millions of lists that live
    on would be looked through again and again.
    Short witnesses are searched for a bounded time. This may cost a G-single or G-nonadjacent its
    name, and leave it the name of a weaker anomaly; :func:`verdict` is exact all the same.

    Raises:
        HistoryError: No clients can have done this, or a value is appended to a list twice.
        ValueError: ``limit`` is less than 1.
    """
    if limit < 1:
        raise ValueError(f"{limit} witnesses prove nothing")
    with _without_garbage_collection():
        return _check(pair(history), limit)


def verdict(
    history: Iterable[HistoryEvent], *, model: ConsistencyModel = "serializable", limit: int = 4
) -> HistoryReport:
    """Return what :func:`check_history` finds of the anomalies that ``model`` forbids.

    Raises:
        HistoryError: As :func:`check_history`.
        ValueError: There is no such model, or ``limit`` is less than 1.
    """
    forbidden = forbidden_by(model)
    report = check_history(history, limit=limit)
    kept = {name: found for name, found in report.anomalies.items() if name in forbidden}
    return HistoryReport(kept, report.transactions, report.steps)


def assert_consistent(
    history: Iterable[HistoryEvent], *, model: ConsistencyModel = "serializable"
) -> None:
    """Raise if a history shows what ``model`` forbids.

    Raises:
        InconsistentHistoryError: It does; the message tells the whole story.
        HistoryError: As :func:`check_history`.
        ValueError: There is no such model.
    """
    if report := verdict(history, model=model):
        raise InconsistentHistoryError(report, model=model)


def _check(transactions: Sequence[Transaction], limit: int) -> HistoryReport:
    witnesses: defaultdict[str, list[Witness]] = defaultdict(list)

    def tell(anomaly: str, numbers: Sequence[int], text: str) -> None:
        if len(witnesses[anomaly]) < limit:
            involved = [transactions[number] for number in dict.fromkeys(numbers)]
            lines = [*map(describe, involved), text]
            ids = tuple(each.invoked for each in involved)
            witnesses[anomaly].append(Witness(anomaly, ids, "\n".join(lines)))

    steps = Steps()
    lists = observe(transactions, tell)
    lost_updates(lists, transactions, tell)
    stale_reads(lists, transactions, tell)
    sessions(lists, transactions, tell)
    graph = build_graph(lists, transactions)
    for anomaly, cycles in find_cycles(graph, limit=limit, steps=steps).items():
        for cycle in cycles:
            ids = tuple(transactions[number].invoked for number in cycle.transactions)
            text = explain(cycle, lists, transactions)
            witnesses[anomaly].append(Witness(anomaly, ids, text))
    found = {anomaly: tuple(each) for anomaly, each in sorted(witnesses.items())}
    return HistoryReport(found, len(transactions), steps.taken)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
