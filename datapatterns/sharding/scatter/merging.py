"""Merge the answers of several shards into what one database would say.

Values are compared here only where Python compares as PostgreSQL does; what is of any other type
is refused, also if a column turns out to hold it against its declaration.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from itertools import groupby
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

from datapatterns.errors import UnmergeableQueryError

Aggregate: TypeAlias = Literal["count", "sum", "min", "max", "bool_and", "bool_or"]

_EXACT: frozenset[type] = frozenset(
    (int, bool, Decimal, float, date, datetime, UUID, bytes, type(None))
)
# Wide enough for any numeric of PostgreSQL; the default of 28 digits would round.
_WIDE = Context(prec=200_000, traps=[])
_BIGINT_LIMIT = 2**63
Ranks: TypeAlias = Mapping[int, Mapping[Any, int]]
"""For some columns, the place of each value in PostgreSQL's order."""

_NO_RANKS: Final[Ranks] = {}


@dataclass(frozen=True, slots=True)
class OrderKey:
    """One column of an ORDER BY.

    Attributes:
        position: Which column of the partial rows.
        descending: Whether large values come first.
        nulls_first: Whether NULL does.
        text: Whether it is text that the servers order as Python does: under collation "C".
        ranked: Whether PostgreSQL has told the places of its values.
    """

    position: int
    descending: bool = False
    nulls_first: bool = False
    text: bool = False
    ranked: bool = False


def merged_rows(
    parts: Iterable[Sequence[Sequence[Any]]],
    *,
    order: Sequence[OrderKey],
    distinct: int | None,
    ranks: Ranks = _NO_RANKS,
) -> list[Sequence[Any]]:
    """Return the rows of all parts, ordered; of rows that agree in the first columns, one.

    Args:
        parts: The rows of each shard.
        order: What to order by.
        distinct: How many columns must agree; None to keep all rows.
        ranks: The places of values that only PostgreSQL can compare.

    Raises:
        UnmergeableQueryError: Python orders or compares such values otherwise than PostgreSQL.
    """
    rows = [row for part in parts for row in part]
    if distinct is not None:
        rows = list({_identity(row[:distinct]): row for row in rows}.values())
    return ordered_rows(rows, order, ranks)


def ordered_rows(
    rows: list[Sequence[Any]], order: Sequence[OrderKey], ranks: Ranks = _NO_RANKS
) -> list[Sequence[Any]]:
    """Return ``rows`` as ORDER BY would.

    Raises:
        UnmergeableQueryError: Python orders such values otherwise than PostgreSQL.
    """
    # The last column first: each pass keeps the order of what it finds equal.
    for key in reversed(order):
        rows = sorted(rows, key=_sort_function(key, ranks), reverse=key.descending)
    return rows


def first_rows(
    rows: Sequence[Sequence[Any]], keys: Sequence[OrderKey], ranks: Ranks = _NO_RANKS
) -> list[Sequence[Any]]:
    """Return the first of each run of rows that agree in ``keys``, as DISTINCT ON does."""
    functions = [_sort_function(key, ranks) for key in keys]
    runs = groupby(rows, key=lambda row: tuple(function(row) for function in functions))
    return [next(run) for _, run in runs]


def merged_groups(
    rows: Iterable[Sequence[Any]],
    *,
    group_by: Sequence[int],
    aggregates: Sequence[tuple[int, Aggregate]],
) -> list[list[Any]]:
    """Return one row for each group, of the same columns.

    Args:
        rows: The partial rows of all shards.
        group_by: Where the columns stand that tell groups apart.
        aggregates: Where the partial results stand, and how they were computed.

    Raises:
        UnmergeableQueryError: The partial results cannot be combined exactly.
    """
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        key = _identity([row[position] for position in group_by])
        merged = groups.get(key)
        if merged is None:
            groups[key] = list(row)
            continue
        for position, aggregate in aggregates:
            merged[position] = _combined(aggregate, merged[position], row[position])
    return list(groups.values())


def _combined(aggregate: Aggregate, one: Any, other: Any) -> Any:  # noqa: ANN401 -- any value
    if one is None or other is None:  # NULL is what no rows amount to
        return other if one is None else one
    match aggregate:
        case "count" | "sum":
            return _added(one, other)
        case "min":
            return other if _comparable(other) < _comparable(one) else one
        case "max":
            return other if _comparable(one) < _comparable(other) else one
        case "bool_and":
            return one and other
        case "bool_or":
            return one or other


def _added(one: Any, other: Any) -> int | Decimal:  # noqa: ANN401 -- any value
    if type(one) is int and type(other) is int:
        total = one + other
        if not -_BIGINT_LIMIT <= total < _BIGINT_LIMIT:
            raise UnmergeableQueryError("a sum() beyond bigint", "cast its argument to Numeric")
        return total
    if type(one) is Decimal and type(other) is Decimal:
        return _WIDE.add(one, other)
    # The sum of floats depends on the order of adding.
    raise UnmergeableQueryError(
        f"sum() of {type(one).__name__}", "cast its argument to Numeric, whose sums are exact"
    )


def _sort_function(key: OrderKey, ranks: Ranks) -> Callable[[Sequence[Any]], tuple[bool, Any]]:
    # A descending pass is reversed, and with it where NULLs go.
    null_rank = key.nulls_first == key.descending
    places = ranks[key.position] if key.ranked else {}

    def sort_key(row: Sequence[Any]) -> tuple[bool, Any]:
        value = row[key.position]
        if value is None:
            return null_rank, 0
        if key.ranked:
            return not null_rank, places[value]
        if key.text and type(value) is str:
            return not null_rank, value
        return not null_rank, _comparable(value)

    return sort_key


def _identity(values: Iterable[Any]) -> tuple[Any, ...]:
    """Text is equal or not by its bytes under every deterministic collation."""
    return tuple(value if type(value) is str else _comparable(value) for value in values)


def _comparable(value: Any) -> Any:  # noqa: ANN401 -- any value
    """Return something that compares and hashes as PostgreSQL compares ``value``."""
    if type(value) not in _EXACT:
        raise UnmergeableQueryError(
            f"comparing values of type {type(value).__name__}",
            'order text under COLLATE "C"; cast other types, or name the shard key',
        )
    if isinstance(value, float | Decimal):
        # To PostgreSQL NaN equals NaN and is greater than everything else.
        return (True, 0) if math.isnan(value) else (False, value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        # Times of one zone would be compared by their clock faces, which repeat in autumn.
        return value.astimezone(UTC)
    return value
