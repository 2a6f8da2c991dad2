"""Combine what conditions say about keys that are two columns."""

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import product
from typing import TypeVar

from datapatterns.sharding.routing.key_conditions import KeyCondition, Parameters
from datapatterns.sharding.strategies.composite import Composite
from datapatterns.sharding.strategies.strategy import Key, KeyPart, ShardingStrategy

T = TypeVar("T")

_PAIRS_MAX = 10_000
_LISTING = frozenset(("=", "in"))


def listed_pairs(
    conditions: Sequence[KeyCondition], parameters: Parameters
) -> frozenset[Key] | None:
    """Return the keys that satisfy all conditions that list some; None if they are not listed.

    Nor if they are too many: each part may be one of a long list.
    """
    firsts, seconds = (_listed_part(conditions, parameters, part) for part in (0, 1))
    pairs = _pairs(conditions, parameters)
    if pairs is not None:
        return frozenset(
            (first, second)
            for first, second in pairs
            if (firsts is None or first in firsts) and (seconds is None or second in seconds)
        )
    if firsts is None or seconds is None or len(firsts) * len(seconds) > _PAIRS_MAX:
        return None
    return frozenset(product(firsts, seconds))


def confined_pairs(
    conditions: Sequence[KeyCondition], parameters: Parameters, strategy: ShardingStrategy
) -> frozenset[int] | None:
    """Return the buckets of keys that satisfy all conditions; None if that may be any."""
    assert isinstance(strategy, Composite)  # no other places such keys
    blocks, places = (
        _confined_part(conditions, parameters, part, of_part)
        for part, of_part in enumerate(strategy.parts)
    )
    confined = strategy.buckets_of_places(blocks, places)
    if _pairs(conditions, parameters) is None:
        return confined
    # Filtered by what the parts are by themselves.
    found = strategy.buckets_for("in", [*(listed_pairs(conditions, parameters) or ())])
    return found if confined is None or found is None else found & confined


def _pairs(
    conditions: Sequence[KeyCondition], parameters: Parameters
) -> frozenset[tuple[KeyPart, KeyPart]] | None:
    """Return the keys that conditions on both parts at once list; None if there are none such."""
    return _intersection(
        frozenset(_ordered(condition, row) for row in condition.part_values(parameters))
        for condition in conditions
        if len(condition.parts) > 1
    )


def _ordered(condition: KeyCondition, row: tuple[KeyPart, ...]) -> tuple[KeyPart, KeyPart]:
    by_part = dict(zip(condition.parts, row, strict=True))
    return by_part[0], by_part[1]


def _listed_part(
    conditions: Sequence[KeyCondition], parameters: Parameters, part: int
) -> frozenset[KeyPart] | None:
    return _intersection(
        frozenset(value for (value,) in condition.part_values(parameters))
        for condition in conditions
        if condition.parts == (part,) and condition.operator in _LISTING
    )


def _confined_part(
    conditions: Sequence[KeyCondition],
    parameters: Parameters,
    part: int,
    strategy: ShardingStrategy,
) -> frozenset[int] | None:
    listed = _listed_part(conditions, parameters, part)
    found = [None if listed is None else strategy.buckets_for("in", [*listed])]
    found += [
        _compared(condition, parameters, strategy)
        for condition in conditions
        if condition.parts == (part,) and condition.operator not in _LISTING
    ]
    return _intersection(each for each in found if each is not None)


def _compared(
    condition: KeyCondition, parameters: Parameters, strategy: ShardingStrategy
) -> frozenset[int] | None:
    values = [value for (value,) in condition.part_values(parameters)]
    if condition.operator == "between":
        if len(values) < 2:  # noqa: PLR2004 -- one is NULL, with which nothing compares
            return frozenset()
        return strategy.buckets_for("between", values)
    return strategy.buckets_for(condition.operator, values[0]) if values else frozenset()


def _intersection(sets: Iterable[frozenset[T]]) -> frozenset[T] | None:
    known = [*sets]
    return reduce(frozenset.intersection, known) if known else None
