"""Aggregates that shards compute in parts, and what makes the whole of these parts.

In PostgreSQL, where numbers keep all digits. It computes variances of whole numbers and decimals
from counts, sums and sums of squares itself; these have the same number of digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Function,
    FunctionFilter,
    Numeric,
    WithinGroup,
    case,
    cast,
    func,
    null,
)
from sqlalchemy import type_coerce as coerced
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import AggregateOrderBy, UnaryExpression

from datapatterns.sharding.scatter.refusals import AGGREGATES, SPREAD
from datapatterns.sharding.scatter.value_types import SMALL_INTEGERS, SUMMABLE

Place: TypeAlias = Callable[[ColumnElement[Any]], ColumnElement[Any]]
"""Lets shards send an expression; returns where it stands in what they send."""

_THE_SAME_OF_PARTS = frozenset(
    ("bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "every", "max", "min")
)
_DECOMPOSABLE = _THE_SAME_OF_PARTS.union(SPREAD, ("avg", "count", "sum"))


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    argument: ColumnElement[Any]
    criterion: ColumnElement[Any] | None
    distinct: bool

    def partial(self, function: Function[Any]) -> ColumnElement[Any]:
        return function if self.criterion is None else function.filter(self.criterion)


def is_decomposable(part: visitors.ExternallyTraversible) -> bool:
    """Return whether an aggregate has partial results; also if ``part`` is none."""
    if isinstance(part, WithinGroup | AggregateOrderBy | aggregate_order_by):
        return False
    if not isinstance(part, Function) or part.name.lower() not in AGGREGATES:
        return True
    if part.name.lower() not in _DECOMPOSABLE or len(part.clauses) != 1:
        return False
    (argument,) = part.clauses
    needs_numbers = part.name.lower() in SPREAD or part.name.lower() in {"avg", "sum"}
    return not needs_numbers or type(_undistinct(argument).type) in SUMMABLE


def combined_aggregate(
    part: visitors.ExternallyTraversible, add: Place, add_group: Place
) -> ColumnElement[Any]:
    """Return what makes an aggregate of its parts.

    Args:
        part: The aggregate, with its FILTER if it has one.
        add: Lets shards send one more result for each group.
        add_group: Lets shards send groups that are smaller: also by this.
    """
    assert isinstance(part, Function | FunctionFilter)
    function = part.func if isinstance(part, FunctionFilter) else part
    assert isinstance(function, Function)
    (given,) = function.clauses
    argument = _undistinct(given)
    criterion = part.criterion if isinstance(part, FunctionFilter) else None
    call = _Call(function.name.lower(), argument, criterion, argument is not given)
    return coerced(_combined(call, add, add_group), function.type)


def _combined(call: _Call, add: Place, add_group: Place) -> ColumnElement[Any]:
    if call.distinct:
        # NULL counts for nothing, so it may stand for what the FILTER leaves out.
        among = call.argument if call.criterion is None else case((call.criterion, call.argument))
        return _named(call.name, add_group(among).distinct())
    if call.name in _THE_SAME_OF_PARTS:
        return _named(call.name, add(call.partial(_named(call.name, call.argument))))
    if call.name == "count":
        return _count(call, add)
    if call.name == "sum":
        total = func.sum(add(call.partial(func.sum(call.argument))))
        return cast(total, BigInteger) if type(call.argument.type) in SMALL_INTEGERS else total
    if call.name == "avg":
        return _sum_of(call, cast(call.argument, Numeric), add) / func.nullif(_count(call, add), 0)
    return _spread(call, add)


def _named(name: str, argument: ColumnElement[Any]) -> Function[Any]:
    found: Function[Any] = getattr(func, name)(argument)
    return found


def _count(call: _Call, add: Place) -> ColumnElement[Any]:
    # Of no groups at all there is no sum.
    counted = func.sum(add(call.partial(func.count(call.argument))))
    return cast(func.coalesce(counted, 0), BigInteger)


def _sum_of(call: _Call, numbers: ColumnElement[Any], add: Place) -> ColumnElement[Any]:
    return coerced(func.sum(add(call.partial(func.sum(numbers)))), Numeric)


def _spread(call: _Call, add: Place) -> ColumnElement[Any]:
    number = cast(call.argument, Numeric)
    count = cast(_count(call, add), Numeric)
    total, squares = _sum_of(call, number, add), _sum_of(call, number * number, add)
    deviations = count * squares - total * total
    of_all = call.name.endswith("_pop")
    pairs = count * (count if of_all else count - 1)
    variance = deviations / pairs
    if call.name.startswith("stddev"):
        # PostgreSQL takes the root to as many digits as the variance has.
        digits = func.scale(variance)
        root: ColumnElement[Any] = func.sqrt(func.round(variance, digits + 20))
        return _spread_or_none(count, deviations, func.round(root, digits), of_all=of_all)
    return _spread_or_none(count, deviations, variance, of_all=of_all)


def _spread_or_none(
    count: ColumnElement[Any],
    deviations: ColumnElement[Any],
    spread: ColumnElement[Any],
    *,
    of_all: bool,
) -> ColumnElement[Any]:
    return case(
        (count <= (0 if of_all else 1), null()),
        (deviations <= 0, cast(0, Numeric)),  # NaN is not
        else_=spread,
    )


def _undistinct(argument: ColumnElement[Any]) -> ColumnElement[Any]:
    if isinstance(argument, UnaryExpression) and argument.operator is operators.distinct_op:
        return argument.element
    return argument
