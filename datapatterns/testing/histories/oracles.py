"""Small oracles: what must hold of a set, of a subscriber's deliveries, of a bank."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def check_set(
    acknowledged: Iterable[T], failed: Iterable[T], final: Iterable[T]
) -> dict[str, set[T]]:
    """Return what is wrong with the elements that are there in the end; empty if nothing is.

    Elements of unknown outcome belong into neither ``acknowledged`` nor ``failed``: they may be
    there or not.

    >>> check_set(acknowledged=[1, 2, 3], failed=[4], final=[1, 3, 4])
    {'lost': {2}, 'resurrected': {4}}

    Returns:
        ``lost``: acknowledged and not there. ``resurrected``: there although they had failed and
        no other attempt was acknowledged.
    """
    there = set(final)
    kept = set(acknowledged)
    found = {"lost": kept - there, "resurrected": (set(failed) & there) - kept}
    return {name: elements for name, elements in found.items() if elements}


def check_sequence(delivered: Iterable[int], committed: Iterable[int]) -> dict[str, list[int]]:
    """Return what is wrong with the positions that one subscriber was given, in this order.

    >>> check_sequence(delivered=[1, 2, 2, 5, 3], committed=[1, 2, 3, 4, 5])
    {'duplicate': [2], 'regression': [3], 'gap': [4]}

    Returns:
        ``duplicate``: given again. ``regression``: given for the first time, but after a later
        one. ``gap``: committed and never given. ``phantom``: given and never committed.
    """
    found: defaultdict[str, list[int]] = defaultdict(list)
    seen: set[int] = set()
    latest = float("-inf")
    for position in delivered:
        if position in seen:
            found["duplicate"].append(position)
        elif position < latest:
            found["regression"].append(position)
        seen.add(position)
        latest = max(latest, position)
    log = set(committed)
    found["gap"] = sorted(log - seen)
    found["phantom"] = sorted(seen - log)
    return {name: positions for name, positions in found.items() if positions}


def check_bank(
    reads: Iterable[Mapping[T, int]], *, total: int, overdraft: bool = False
) -> dict[str, list[dict[T, int]]]:
    """Return the reads that no order of transfers between accounts explains.

    Transfers move money and neither make nor lose any, so each read of all accounts has to add
    up to ``total``. A sum can be right by chance; list-append histories miss less.

    >>> check_bank([{"a": 5, "b": 5}, {"a": 3, "b": 5}, {"a": 12, "b": -2}], total=10)
    {'wrong-total': [{'a': 3, 'b': 5}], 'negative-balance': [{'a': 12, 'b': -2}]}

    Args:
        reads: The balances that one transaction saw, of all accounts.
        total: What they add up to at all times.
        overdraft: Whether a balance may be negative.
    """
    found: defaultdict[str, list[dict[T, int]]] = defaultdict(list)
    for read in reads:
        if sum(read.values()) != total:
            found["wrong-total"].append(dict(read))
        if not overdraft and any(balance < 0 for balance in read.values()):
            found["negative-balance"].append(dict(read))
    return dict(found)
