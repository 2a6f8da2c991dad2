"""Cycles as text that a person can follow, step by step, in the recorded history."""

from collections.abc import Iterator, Mapping, Sequence

from datapatterns.testing.histories.cycles import Cycle
from datapatterns.testing.histories.events import Key, Transaction
from datapatterns.testing.histories.graph import Kind
from datapatterns.testing.histories.lists import NOBODY, ListOrder, brief

_OPERATIONS_SHOWN = 12


def explain(
    cycle: Cycle, lists: Mapping[Key, ListOrder], transactions: Sequence[Transaction]
) -> str:
    """Return who did what, and why each transaction comes before the next and the last first."""
    names = [transactions[number].name for number in cycle.transactions]
    lines = [describe(transactions[number]) for number in cycle.transactions]
    targets = (*cycle.transactions[1:], cycle.transactions[0])
    for source, kind, target in zip(cycle.transactions, cycle.kinds, targets, strict=True):
        lines.append("- " + _reason(source, kind, target, lists, transactions))
    lines.append(f"a cycle: {' → '.join((*names, names[0]))}")
    return "\n".join(lines)


def describe(transaction: Transaction) -> str:
    """Return what a transaction did, in one line."""
    done = [
        f"append {value!r} to {key!r}" if name == "append" else f"read {brief(value)} from {key!r}"
        for name, key, value in transaction.operations[:_OPERATIONS_SHOWN]
    ]
    if len(transaction.operations) > _OPERATIONS_SHOWN:
        done.append(f"… ({len(transaction.operations)} operations)")
    state = "" if transaction.type == "ok" else f", {transaction.type}"
    return f"{transaction.name} (process {transaction.process}{state}): {', '.join(done)}"


def _reason(
    source: int,
    kind: Kind,
    target: int,
    lists: Mapping[Key, ListOrder],
    transactions: Sequence[Transaction],
) -> str:
    one, other = transactions[source], transactions[target]
    if kind == Kind.REALTIME:
        return f"{other.name} began after {one.name} had ended (realtime)"
    if kind == Kind.PROCESS:
        return f"{other.name} is what process {one.process} did after {one.name} (process)"
    if kind == Kind.WW:
        reasons = _write_after_write(source, target, lists, transactions)
    elif kind == Kind.WR:
        reasons = _read_after_write(source, target, lists, transactions)
    else:
        reasons = _write_after_read(source, target, lists, transactions)
    return next(reasons)


def _write_after_write(
    source: int, target: int, lists: Mapping[Key, ListOrder], transactions: Sequence[Transaction]
) -> Iterator[str]:
    one, other = transactions[source].name, transactions[target].name
    for key in _keys(transactions[target], "append"):
        order, previous, latest = lists[key], NOBODY, None
        for writer, value in zip(order.committed, order.longest, strict=True):
            if writer == target and previous == source:
                yield f"{other} appended {value!r} to {key!r} after {one}'s {latest!r} (ww)"
            if writer != NOBODY:
                previous, latest = writer, value
        if target in order.unseen and previous == source:
            yield (
                f"{other} appended {order.final[target]!r} to {key!r}, which nobody read,"
                f" and so after {one}'s {latest!r} (ww)"
            )


def _read_after_write(
    source: int, target: int, lists: Mapping[Key, ListOrder], transactions: Sequence[Transaction]
) -> Iterator[str]:
    one, other = transactions[source].name, transactions[target].name
    for key in _keys(transactions[target], "r"):
        order = lists[key]
        for values in (values for number, values in order.reads if number == target):
            for writer, value in zip(
                order.committed[: len(values)][::-1], values[::-1], strict=True
            ):
                if writer == source:
                    yield f"{other} read {one}'s {value!r} from {key!r} (wr)"
                if writer != NOBODY:
                    break
        for reader, writer, value in order.strays:
            if (reader, writer) == (target, source):
                yield f"{other} read {one}'s {value!r} from {key!r} (wr)"


def _write_after_read(
    source: int, target: int, lists: Mapping[Key, ListOrder], transactions: Sequence[Transaction]
) -> Iterator[str]:
    one, other = transactions[source].name, transactions[target].name
    for key in _keys(transactions[source], "r"):
        order = lists[key]
        for values in (values for number, values in order.reads if number == source):
            later = range(len(values), len(order.longest))
            missed = next((at for at in later if order.committed[at] != NOBODY), None)
            if missed is not None and order.committed[missed] == target:
                value = order.longest[missed]
                yield f"{one} read {key!r} without {other}'s {value!r} (rw)"
            if missed is None and target in order.unseen:
                value = order.final[target]
                yield f"{one} read {key!r} without {other}'s {value!r}, which nobody read (rw)"


def _keys(transaction: Transaction, name: str) -> list[Key]:
    return list(dict.fromkeys(key for each, key, _ in transaction.operations if each == name))
