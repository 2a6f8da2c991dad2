"""Events in, transactions out; what no client can have done is refused."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, get_args

from datapatterns.errors import HistoryError
from datapatterns.testing.histories.events import (
    NEVER,
    EventType,
    HistoryEvent,
    Key,
    ListOperation,
    Transaction,
)


def pair(history: Iterable[HistoryEvent]) -> list[Transaction]:
    """Return the transactions of a history in the order in which they were invoked.

    Raises:
        HistoryError: Its events do not fit together.
    """
    pairing = Pairing()
    for event in history:
        pairing.add(event)
    return pairing.transactions


class Pairing:
    """Takes events one by one.

    Attributes:
        transactions: What the events so far tell. The outcome of those that have not ended yet is
            ``info``.
    """

    def __init__(self) -> None:
        self.transactions: list[Transaction] = []
        self._open: dict[int, tuple[Transaction, list[ListOperation]]] = {}
        self._retired: set[int] = set()
        self._index = -1

    def add(self, event: HistoryEvent) -> None:
        """Take the next event.

        Raises:
            HistoryError: It does not fit to those before.
        """
        for operation in event.value or ():
            _refuse_no_operation(operation, event)
        if event.index <= self._index:
            raise HistoryError(f"index {event.index} comes after {self._index}", event=event.index)
        self._index = event.index
        if event.type == "invoke":
            self._begin(event)
        elif event.type in get_args(EventType):
            self._end(event)
        else:
            raise HistoryError(f"{event.type!r} is no type of event", event=event.index)

    def _begin(self, event: HistoryEvent) -> None:
        if event.process in self._open:
            raise HistoryError(
                f"process {event.process} invokes again before its last call has ended",
                event=event.index,
            )
        if event.process in self._retired:
            raise HistoryError(
                f"process {event.process} goes on after an outcome that nobody knows; a client"
                " goes on under a new number",
                event=event.index,
            )
        planned = event.value or []
        transaction = Transaction(event.process, "info", event.index, NEVER, _appends(planned))
        self._open[event.process] = transaction, planned
        self.transactions.append(transaction)

    def _end(self, event: HistoryEvent) -> None:
        if event.process not in self._open:
            raise HistoryError(
                f"process {event.process} ends a call that it has not invoked", event=event.index
            )
        transaction, planned = self._open.pop(event.process)
        done = event.value
        if done is None and event.type == "ok":
            raise HistoryError("an acknowledged call must say what it did", event=event.index)
        if done is not None:
            _refuse_other_operations(planned, done, event)
            transaction.operations = [*done] if event.type == "ok" else _appends(done)
        transaction.type = event.type
        if event.type == "ok":
            transaction.returned = event.index
        if event.type == "info":
            self._retired.add(event.process)


def _appends(operations: list[ListOperation]) -> list[tuple[str, Key, Any]]:
    return [operation for operation in operations if operation[0] == "append"]


def _refuse_no_operation(operation: Sequence[Any], event: HistoryEvent) -> None:
    # A file cannot bring most of this, but who makes events himself can.
    reason = ""
    match operation:
        case ("r", key, None | list() | tuple()):
            reason = "" if isinstance(key, Hashable) else f"{key!r} is no key"
        case ("r", key, values):
            reason = f"it reads {values!r} from {key!r}, which is no list"
        case ("append", key, value):
            if value is None or not isinstance(value, Hashable):
                reason = f"it appends {value!r} to {key!r}, which is no value"
            elif not isinstance(key, Hashable):
                reason = f"{key!r} is no key"
        case _:
            reason = f"{operation!r} is neither an append nor a read"
    if reason:
        raise HistoryError(reason, event=event.index)


def _refuse_other_operations(
    planned: list[ListOperation], done: list[ListOperation], event: HistoryEvent
) -> None:
    # A call need not say beforehand what it will do; if it does, it must keep to it.
    if not planned:
        return
    if len(planned) != len(done) or any(
        tuple(before[: 2 + (before[0] == "append")]) != tuple(after[: 2 + (after[0] == "append")])
        for before, after in zip(planned, done, strict=True)
    ):
        raise HistoryError("a call ends with other operations than it began", event=event.index)
