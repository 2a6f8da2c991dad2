"""Merge the answers of several shards into what one database would say.

Values are compared here only where Python compares as PostgreSQL does; what is of any other type
is refused, also if a column turns out to hold it against its declaration.
"""

from collections.abc import Collection, Iterable, Sequence
from decimal import Context, Decimal
from typing import Any, Literal, TypeAlias

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.scatter.ordering import (
    NO_RANKS,
    OrderKey,
    Ranks,
    comparable,
    ordered_rows,
)

Aggregate: TypeAlias = Literal["count", "sum", "min", "max", "bool_and", "bool_or"]

# Wide enough for any numeric of PostgreSQL; the default of 28 digits would round.
_WIDE = Context(prec=200_000, traps=[])
_BIGINT_LIMIT = 2**63


def merged_rows(
    parts: Iterable[Sequence[Sequence[Any]]],
    *,
    order: Sequence[OrderKey],
    distinct: int | None,
    ranks: Ranks = NO_RANKS,
    plain: Collection[int] = (),
) -> list[Sequence[Any]]:
    """Return the rows of all parts, ordered; of rows that agree in the first columns, one.

    Args:
        parts: The rows of each shard.
        order: What to order by.
        distinct: How many columns must agree; None to keep all rows.
        ranks: The places of values that only PostgreSQL can compare.
        plain: Columns known to need no look at their values before these are compared.

    Raises:
        UnmergeableQueryError: Python orders or compares such values otherwise than PostgreSQL.
    """
    rows = [row for part in parts for row in part]
    if distinct is not None:
        rows = list({_identity(row[:distinct]): row for row in rows}.values())
    return ordered_rows(rows, order, ranks, plain=plain)


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
            return other if comparable(other) < comparable(one) else one
        case "max":
            return other if comparable(one) < comparable(other) else one
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


def _identity(values: Iterable[Any]) -> tuple[Any, ...]:
    """Text is equal or not by its bytes under every deterministic collation."""
    return tuple(value if type(value) is str else comparable(value) for value in values)
