"""Anomalies that one read shows by itself: lost updates, stale reads, broken sessions.

Most of them are short cycles of the dependency graph as well; here they get the name that a
person looks for, without any search.
"""

from collections.abc import Iterator, Mapping, Sequence

from datapatterns.testing.histories.events import NEVER, Key, Transaction, Value
from datapatterns.testing.histories.lists import NOBODY, ListOrder, Tell, brief


def lost_updates(
    lists: Mapping[Key, ListOrder], transactions: Sequence[Transaction], tell: Tell
) -> None:
    """Tell of transactions that read one version of a list and then both appended to it."""
    for key, order in lists.items():
        updated: dict[int, int] = {}
        for number, length in order.bases.items():
            if number not in order.final:
                continue
            other = updated.setdefault(length, number)
            if other != number:
                text = (
                    f"{transactions[other].name} and {transactions[number].name} both read"
                    f" {brief(order.longest[:length])} from {key!r} and appended to it:"
                    f" {order.final[other]!r} and {order.final[number]!r}"
                )
                tell("lost-update", [other, number], text)


def stale_reads(
    lists: Mapping[Key, ListOrder], transactions: Sequence[Transaction], tell: Tell
) -> None:
    """Tell of reads that miss an append that had been acknowledged before they began."""
    for key, order in lists.items():
        acknowledged = _first_acknowledged(order, transactions)
        for number, values in order.reads:
            writer = acknowledged[len(values)]
            if (
                writer != NOBODY
                and transactions[writer].returned < transactions[number].invoked
                and values == order.longest[: len(values)]
            ):
                text = (
                    f"{transactions[number].name} read {brief(values)} from {key!r}, but"
                    f" {transactions[writer].name} had appended {order.final[writer]!r} and had"
                    " been acknowledged before the read began"
                )
                tell("stale-read", [writer, number], text)


def sessions(
    lists: Mapping[Key, ListOrder], transactions: Sequence[Transaction], tell: Tell
) -> None:
    """Tell of processes that saw a list shrink, or did not see their own appends."""
    place = {
        key: {
            **{number: at for at, number in enumerate(order.committed)},
            **dict.fromkeys(order.unseen, NEVER),
        }
        for key, order in lists.items()
    }
    longest_read: dict[tuple[int, Key], tuple[int, int]] = {}
    last_append: dict[tuple[int, Key], tuple[float, int]] = {}
    for number, transaction in enumerate(transactions):
        if transaction.type != "ok":
            continue
        process = transaction.process
        for key, values in _fitting_reads(lists, transaction):
            session, length = (process, key), len(values)
            before, earlier = longest_read.get(session, (0, number))
            if length < before:
                text = (
                    f"process {process} read {before} values from {key!r} in"
                    f" {transactions[earlier].name} and {length} in {transaction.name} afterwards"
                )
                tell("non-monotonic-read", [earlier, number], text)
            else:
                longest_read[session] = length, number
            at, writer = last_append.get(session, (-1, number))
            if length <= at:
                text = (
                    f"process {process} appended {lists[key].final[writer]!r} to {key!r} in"
                    f" {transactions[writer].name}, and {transaction.name} of the same process"
                    f" read {brief(values)}"
                )
                tell("read-your-writes-violation", [writer, number], text)
        for key in {key for name, key, _ in transaction.operations if name == "append"}:
            session, at = (process, key), place[key].get(number, NEVER)
            last_append[session] = max(last_append.get(session, (-1, number)), (at, number))


def _fitting_reads(
    lists: Mapping[Key, ListOrder], transaction: Transaction
) -> Iterator[tuple[Key, list[Value]]]:
    # What fits into no order is neither before nor after anything.
    for name, key, value in transaction.operations:
        if name == "r":
            values = value if type(value) is list else list(value or ())
            if values == lists[key].longest[: len(values)]:
                yield key, values


def _first_acknowledged(order: ListOrder, transactions: Sequence[Transaction]) -> list[int]:
    """Return, for each length of a read, whose append that it misses was acknowledged first."""

    def earlier(one: int, other: int) -> int:
        if other == NOBODY:
            return one
        if one == NOBODY:
            return other
        return min(one, other, key=lambda number: transactions[number].returned)

    first = NOBODY
    for number in order.unseen:
        first = earlier(first, number)
    by_length = [first]
    for number in reversed(order.committed):
        first = earlier(first, number)
        by_length.append(first)
    return by_length[::-1]
