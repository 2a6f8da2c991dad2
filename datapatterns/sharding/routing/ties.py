"""Tell whether the rows that a statement combines have one key, all parts of it."""

from collections.abc import Sequence

from datapatterns.sharding.routing.key_conditions import KeyTie, Leaf


def are_tied(elements: Sequence[Sequence[Leaf]], ties: Sequence[KeyTie]) -> bool:
    """Return whether ties connect all elements of a FROM clause that hold sharded tables.

    If keys are two columns, they must in each of them: rows of one tenant's number may be of two
    regions.
    """
    leaves = [leaf for element in elements for leaf in element]
    return all(_connected(elements, ties, part) for part in _parts_of(leaves))


def tie_both(left: Sequence[Leaf], right: Sequence[Leaf], ties: Sequence[KeyTie]) -> bool:
    """Return whether ties lead from one side of an outer join to the other."""
    return all(
        any(
            part == tied and ((one in left and other in right) or (one in right and other in left))
            for one, other, tied in ties
        )
        for part in _parts_of([*left, *right])
    )


def _connected(elements: Sequence[Sequence[Leaf]], ties: Sequence[KeyTie], part: int) -> bool:
    groups = [set(element) for element in elements if element]
    for left, right, tied in ties:
        if tied != part:
            continue
        joined = [group for group in groups if left in group or right in group]
        groups = [group for group in groups if group not in joined]
        groups.append(set().union(*joined))
    return len(groups) <= 1


def _parts_of(leaves: Sequence[Leaf]) -> range:
    return range(max((len(leaf.shard_key.columns) for leaf in leaves), default=1))
