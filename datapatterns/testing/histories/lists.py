"""What the reads of a history say about each list: one order for all, or a contradiction."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datapatterns.errors import HistoryError
from datapatterns.testing.histories.events import Key, Transaction, Value

NOBODY = -1
"""Stands for the writer of a value that no transaction of the history can have committed."""

Tell = Callable[[str, Sequence[int], str], None]
"""Takes the name of an anomaly, the numbers of its transactions, and what happened."""


@dataclass(slots=True)
class ListOrder:
    """One list. Transactions go by their numbers in the history.

    Attributes:
        writer: Who appended a value.
        final: The last value that a transaction appended.
        longest: The longest read, which is taken for the order of the versions (Elle): if the
            list only grows, each other read must be the beginning of it.
        longest_by: Who read that; ``NOBODY`` if nobody has read anything.
        reads: Who read, and what was there without the reader's own appends.
        strays: Who read what fits into no order, and whose append that ends with, and which:
            it tells nothing else.
        bases: How much a transaction had read last before its first own append.
        committed: For each place in ``longest`` its writer; ``NOBODY`` for values that were
            rolled back or come from nowhere.
        unseen: Who committed appends that nobody has ever read: they come after ``longest``.
    """

    writer: dict[Value, int] = field(default_factory=dict)
    final: dict[int, Value] = field(default_factory=dict)
    longest: list[Value] = field(default_factory=list)
    longest_by: int = NOBODY
    reads: list[tuple[int, list[Value]]] = field(default_factory=list)
    strays: list[tuple[int, int, Value]] = field(default_factory=list)
    bases: dict[int, int] = field(default_factory=dict)
    committed: list[int] = field(default_factory=list)
    unseen: list[int] = field(default_factory=list)


def observe(transactions: Sequence[Transaction], tell: Tell) -> dict[Key, ListOrder]:
    """Return the order of every list; tell what contradicts every order.

    Raises:
        HistoryError: A value was appended to one list twice, so that reads do not say whose it is.
    """
    lists: defaultdict[Key, ListOrder] = defaultdict(ListOrder)
    for number, transaction in enumerate(transactions):
        _note_appends(lists, number, transaction)
    for number, transaction in enumerate(transactions):
        if transaction.type == "ok":
            _note_reads(lists, number, transaction, tell)
    for order in lists.values():
        writers = (order.writer.get(value, NOBODY) for value in order.longest)
        order.committed = [
            NOBODY if number == NOBODY or transactions[number].type == "fail" else number
            for number in writers
        ]
    committed = {writer for order in lists.values() for writer in order.committed}
    for key, order in lists.items():
        order.unseen = _unseen(order, transactions, committed)
        _compare_reads(key, order, transactions, tell)
    return dict(lists)


def brief(found: Sequence[Value] | None) -> str:
    """Return a list as explanations show it: its end is what matters."""
    values = found or ()
    if len(values) <= 8:  # noqa: PLR2004
        return repr(list(values))
    return f"[… {', '.join(map(repr, values[-4:]))}] ({len(values)} values)"


def _note_appends(lists: dict[Key, ListOrder], number: int, transaction: Transaction) -> None:
    for name, key, value in transaction.operations:
        if name == "append":
            order = lists[key]
            if value in order.writer:
                raise HistoryError(
                    f"{value!r} is appended to {key!r} a second time; every append needs a"
                    " value of its own",
                    event=transaction.invoked,
                )
            order.writer[value] = number
            order.final[number] = value


def _note_reads(
    lists: dict[Key, ListOrder], number: int, transaction: Transaction, tell: Tell
) -> None:
    own: dict[Key, list[Any]] = {}
    views: dict[Key, list[Any]] = {}
    for name, key, value in transaction.operations:
        if name == "append":
            own.setdefault(key, []).append(value)
            continue
        values = value if type(value) is list else list(value or ())
        order = lists[key]
        mine = own.get(key)
        base = values[: len(values) - len(mine)] if mine else values
        text = ""
        if mine and values[len(base) :] != mine:
            text = f"it appended {brief(mine)} to {key!r} and then read {brief(values)}"
            base = values
        elif base and order.writer.get(base[-1]) == number:
            text = f"it read {base[-1]!r} from {key!r} before it appended that itself"
        elif views.setdefault(key, base) != base:
            text = f"it read {key!r} twice: first {brief(views[key])}, then {brief(base)}"
        if text:
            tell("internal", [number], text)
        # A read that contradicts another one was seen all the same: a level that allows the two
        # to differ does not allow what was rolled back in one of them.
        if not mine:
            order.bases[number] = len(base)
        _note_read(order, number, values, base)


def _note_read(order: ListOrder, number: int, values: list[Value], base: list[Value]) -> None:
    if len(values) > len(order.longest):
        order.longest, order.longest_by = values, number
    if not order.reads or order.reads[-1] != (number, base):
        order.reads.append((number, base))


def _unseen(
    order: ListOrder, transactions: Sequence[Transaction], committed: set[int]
) -> list[int]:
    # Who has anything read has committed all of it, whatever its client was told.
    seen = set(order.longest)
    return [
        number
        for number, value in order.final.items()
        if value not in seen and (transactions[number].type == "ok" or number in committed)
    ]


def _compare_reads(
    key: Key, order: ListOrder, transactions: Sequence[Transaction], tell: Tell
) -> None:
    longest = order.longest
    foreign = _first_that_nobody_committed(order)
    _look_for_duplicates(key, order.longest_by, longest, transactions, tell)
    fitting = []
    for number, values in order.reads:
        length = len(values)
        fits = values == longest[:length]
        if fits:
            fitting.append((number, values))
        else:
            reader, other = transactions[number].name, transactions[order.longest_by].name
            text = (
                f"{reader} read {brief(values)} from {key!r} and {other} read {brief(longest)},"
                " which does not begin like that"
            )
            tell("incompatible-order", [number, order.longest_by], text)
            _look_for_duplicates(key, number, values, transactions, tell)
            order.bases.pop(number, None)
            order.strays += _last_committed(order, number, values, transactions)
        if length > foreign or not fits:
            _look_at_each(key, order, number, values, transactions, tell)
        if values:
            _look_at_the_end(key, order, number, values[-1], transactions, tell)
    order.reads = fitting


def _look_for_duplicates(
    key: Key, number: int, values: list[Value], transactions: Sequence[Transaction], tell: Tell
) -> None:
    if len(set(values)) != len(values):
        text = f"{transactions[number].name} read a value of {key!r} twice: {brief(values)}"
        tell("duplicate-elements", [number], text)


def _last_committed(
    order: ListOrder, number: int, values: list[Value], transactions: Sequence[Transaction]
) -> list[tuple[int, int, Value]]:
    for value in reversed(values):
        writer = order.writer.get(value, NOBODY)
        if writer != NOBODY and transactions[writer].type != "fail":
            return [(number, writer, value)]
    return []


def _first_that_nobody_committed(order: ListOrder) -> float:
    if NOBODY in order.committed:
        return order.committed.index(NOBODY)
    return float("inf")


def _look_at_each(
    key: Key,
    order: ListOrder,
    number: int,
    values: list[Value],
    transactions: Sequence[Transaction],
    tell: Tell,
) -> None:
    reader = transactions[number].name
    for value in values:
        writer = order.writer.get(value)
        if writer is None:
            text = f"{reader} read {value!r} from {key!r}, which nobody has appended"
            tell("garbage-read", [number], text)
        elif transactions[writer].type == "fail":
            text = (
                f"{reader} read {value!r} from {key!r}, which {transactions[writer].name} had"
                " appended and rolled back"
            )
            tell("G1a", [writer, number], text)


def _look_at_the_end(
    key: Key,
    order: ListOrder,
    number: int,
    value: Value,
    transactions: Sequence[Transaction],
    tell: Tell,
) -> None:
    writer = order.writer.get(value, number)
    if writer == number or order.final[writer] == value or transactions[writer].type == "fail":
        return
    text = (
        f"{transactions[number].name} read {key!r} up to {value!r}, after which"
        f" {transactions[writer].name} appended {order.final[writer]!r} to it as well"
    )
    tell("G1b", [writer, number], text)
