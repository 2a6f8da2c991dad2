"""In which order views are created and refreshed that are built upon each other."""

from collections.abc import Hashable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

from datapatterns.errors import ViewCycleError

K = TypeVar("K", bound=Hashable)


def in_order(parents: Mapping[str, Iterable[str]]) -> list[str]:
    """Return all names, each after those that it is built upon, else as they are given.

    >>> in_order({"top": ["middle"], "middle": ["bottom"], "bottom": []})
    ['bottom', 'middle', 'top']

    Args:
        parents: What each is built upon; names that are no key count as there already.

    Raises:
        ViewCycleError: Some are built upon each other in a circle.
    """
    known = {name: [p for p in above if p in parents] for name, above in parents.items()}
    try:
        TopologicalSorter(known).prepare()
    except CycleError as error:
        raise ViewCycleError([*reversed(error.args[1])]) from None
    found: list[str] = []

    def add(name: str) -> None:
        for parent in known[name]:
            add(parent)
        if name not in found:
            found.append(name)

    for name in known:
        add(name)
    return found


def with_ancestors(names: Iterable[str], parents: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the names and all that they are built upon, directly or not.

    >>> sorted(with_ancestors(["b"], {"a": [], "b": ["a"], "c": ["b"]}))
    ['a', 'b']
    """
    found: set[str] = set()
    left = [*names]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += parents.get(name, ())
    return found


def companies(parents: Mapping[str, Iterable[str]]) -> list[tuple[str, ...]]:
    """Return all names in order, with those together that have to be refreshed in one snapshot.

    These are what one view is built upon, and so on: refreshed one after the other, they would
    show it two moments. What is built upon another of them has to come after it, and stays apart.

    >>> companies({"a": [], "b": [], "both": ["a", "b"], "alone": []})
    [('a', 'b'), ('alone',), ('both',)]
    """
    ordered = in_order(parents)
    levels = _levels(ordered, parents)
    company = {name: [name] for name in ordered}
    for name in ordered:
        known = [parent for parent in parents[name] if parent in company]
        for level in {levels[parent] for parent in known}:
            # On one level none is built upon another.
            _unite(company, [parent for parent in known if levels[parent] == level])
    found: dict[int, tuple[str, ...]] = {}
    for name in sorted(ordered, key=levels.__getitem__):
        found.setdefault(id(company[name]), tuple(n for n in ordered if n in company[name]))
    return [*found.values()]


def _levels(ordered: Iterable[str], parents: Mapping[str, Iterable[str]]) -> dict[str, int]:
    levels: dict[str, int] = {}
    for name in ordered:
        levels[name] = max((levels[p] + 1 for p in parents[name] if p in levels), default=0)
    return levels


def _unite(company: dict[str, list[str]], names: list[str]) -> None:
    for name in names[1:]:
        if company[name] is not company[names[0]]:
            united = company[names[0]] + company[name]
            company.update(dict.fromkeys(united, united))
