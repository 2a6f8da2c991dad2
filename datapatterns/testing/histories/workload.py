"""Drive any list with random transactions from many threads, and record what happens."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count, repeat
from threading import Event, Lock
from typing import TYPE_CHECKING, Protocol, TypeVar

from sqlalchemy.exc import DBAPIError

from datapatterns.errors import ConflictError, OutcomeUnknownError, UnavailableError
from datapatterns.testing.histories.events import HistoryEvent, ListOperation
from datapatterns.testing.histories.recording import RecordedClient, Recorder

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

LOST_TRANSACTION: tuple[type[Exception], ...] = (
    DBAPIError,
    ConflictError,
    OutcomeUnknownError,
    UnavailableError,
)
"""Errors that end a transaction and are no fault of the workload."""

_LAST_READ_ATTEMPTS = 4


class ListStore(Protocol[T_contra]):
    """Anything that can pass for lists: event streams, arrays, cached or projected lists."""

    def append(self, txn: T_contra, key: int, value: int) -> None:
        """Append ``value`` to the list ``key``, in the transaction."""
        ...

    def read(self, txn: T_contra, key: int) -> Sequence[int] | None:
        """Return the list ``key`` from the oldest to the youngest; None if it does not exist."""
        ...


@dataclass(frozen=True, slots=True)
class ListWorkload:
    """What random transactions look like.

    Few lists at a time make many conflicts. A list retires when it is long: what is read, and so
    the time of a check, grows with the square of that length.

    Attributes:
        lists: How many are in use at a time.
        operations_max: How many appends and reads a transaction has at most; one at least.
        appends_for_each_list: When a list is replaced by a fresh one.
        read_share: How many of the operations are reads, from 0 to 1.

    Raises:
        ValueError: One of them is out of its range.
    """

    lists: int = 6
    operations_max: int = 4
    appends_for_each_list: int = 32
    read_share: float = 0.5

    def __post_init__(self) -> None:
        if min(self.lists, self.operations_max, self.appends_for_each_list) < 1:
            raise ValueError("lists, operations_max and appends_for_each_list are one at least")
        if not 0 <= self.read_share <= 1:
            raise ValueError(f"read_share is from 0 to 1, not {self.read_share}")

    def transactions(self, *, seed: int) -> Iterator[list[ListOperation]]:
        """Yield transactions without end, the same for the same seed; no value comes twice."""
        draw = random.Random(seed)  # noqa: S311 -- a seed must give the same again
        active, fresh = list(range(self.lists)), count(self.lists)
        appends: Counter[int] = Counter()
        while True:
            operations: list[ListOperation] = []
            for _ in range(draw.randint(1, self.operations_max)):
                key = draw.choice(active)
                if draw.random() < self.read_share:
                    operations.append(("r", key, None))
                    continue
                appends[key] += 1
                operations.append(("append", key, appends[key]))
                if appends[key] == self.appends_for_each_list:
                    active[active.index(key)] = next(fresh)
            yield operations


def list_transactions(
    *, lists: int = 3, operations_max: int = 4, transactions_max: int = 8
) -> "SearchStrategy[list[list[ListOperation]]]":
    """Return a Hypothesis strategy of a few transactions; no value is appended to a list twice."""
    from hypothesis import strategies as st  # noqa: PLC0415 -- in the extra `testing`

    shape = st.tuples(st.booleans(), st.integers(0, lists - 1))
    shapes = st.lists(
        st.lists(shape, min_size=1, max_size=operations_max), max_size=transactions_max
    )
    return shapes.map(_numbered)


def run_list_append(  # noqa: PLR0913 -- each has its default
    store: ListStore[T],
    begin: Callable[[], AbstractContextManager[T]],
    *,
    transactions: Iterable[Sequence[ListOperation]],
    clients: int = 8,
    recorder: Recorder | None = None,
    expected: tuple[type[Exception], ...] = LOST_TRANSACTION,
    settle: Callable[[], object] | None = None,
) -> list[HistoryEvent]:
    """Run transactions against a store from ``clients`` threads; return the history.

    In the end a client of its own reads every list, so that appends that were acknowledged and
    lost are missed.

    Args:
        store: What is tested.
        begin: Begins a transaction, which ends with its block; such as ``engine.begin``.
        transactions: A bounded number of them: who is free takes the next. Which client that is,
            and in what order they commit, is up to threads and servers.
        clients: How many at a time.
        recorder: What writes it down; by default a new one.
        expected: Errors that may end a transaction; the outcome is recorded and the client goes
            on. Any other error ends the run and is raised.
        settle: Called once nobody writes any more: to let a projection catch up, or a server
            start again. The last reads come after it; they use ``begin``, too.
    """
    recorder = recorder or Recorder()
    planned, lock, failed = iter(transactions), Lock(), Event()
    keys: dict[int, None] = {}

    def next_transaction() -> Sequence[ListOperation] | None:
        with lock:
            operations = None if failed.is_set() else next(planned, None)
            keys.update((int(key), None) for _, key, _ in operations or ())
            return operations

    def work() -> None:
        client = recorder.client()
        try:
            while (operations := next_transaction()) is not None:
                run_transaction(store, begin, client, operations, expected=expected)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(clients) as threads:
        try:
            for each in [threads.submit(work) for _ in range(clients)]:
                each.result()
        except BaseException:  # of Ctrl-C, too, the threads know nothing
            failed.set()
            raise
    if settle is not None:
        settle()
    _read_in_the_end(store, begin, recorder.client(), keys, expected)
    return recorder.history()


def _read_in_the_end(
    store: ListStore[T],
    begin: Callable[[], AbstractContextManager[T]],
    reader: RecordedClient,
    keys: Iterable[int],
    expected: tuple[type[Exception], ...],
) -> None:
    for key in keys:
        # A pool may still hold connections that broke meanwhile: each loses one transaction.
        for tolerated in (*repeat(expected, _LAST_READ_ATTEMPTS - 1), ()):
            if run_transaction(store, begin, reader, [("r", key, None)], expected=tolerated):
                break


def run_transaction(
    store: ListStore[T],
    begin: Callable[[], AbstractContextManager[T]],
    client: RecordedClient,
    operations: Sequence[ListOperation],
    *,
    expected: tuple[type[Exception], ...] = LOST_TRANSACTION,
) -> bool:
    """Run one transaction, record it, and return whether it was acknowledged."""
    try:
        with client.transaction(begin(), planned=operations) as txn:
            for name, key, value in operations:
                if name == "r":
                    txn.read(key, store.read(txn.conn, int(key)))
                else:
                    assert isinstance(value, int)
                    txn.append(key, value)
                    store.append(txn.conn, int(key), value)
    except expected:
        return False
    return True


def _numbered(shapes: list[list[tuple[bool, int]]]) -> list[list[ListOperation]]:
    values: Counter[int] = Counter()
    transactions = []
    for shape in shapes:
        operations: list[ListOperation] = []
        for is_read, key in shape:
            if is_read:
                operations.append(("r", key, None))
            else:
                values[key] += 1
                operations.append(("append", key, values[key]))
        transactions.append(operations)
    return transactions
