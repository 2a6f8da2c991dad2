"""Which parts of a SELECT can be merged by Python exactly as by PostgreSQL; others are not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Function,
    FunctionFilter,
    Over,
    Select,
    WithinGroup,
)
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import (
    AggregateOrderBy,
    BinaryExpression,
    ClauseElement,
    CollationClause,
    TypeCoerce,
    UnaryExpression,
)
from sqlalchemy.sql.functions import FunctionElement

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.scatter.merging import Aggregate
from datapatterns.sharding.scatter.ordering import OrderKey
from datapatterns.sharding.scatter.ranking import can_be_ranked
from datapatterns.sharding.scatter.refusals import AGGREGATES, name_of
from datapatterns.sharding.scatter.selected import unlabelled
from datapatterns.sharding.scatter.value_types import (
    SUMMABLE,
    TEXTS,
    contains_floats,
    is_orderable,
    is_told_apart_by_bytes,
)

AggregateName: TypeAlias = Aggregate | Literal["avg"]

_AGGREGATES: dict[str, AggregateName] = {
    "avg": "avg",
    "bool_and": "bool_and",
    "bool_or": "bool_or",
    "count": "count",
    "max": "max",
    "min": "min",
    "sum": "sum",
}


@dataclass(frozen=True, slots=True)
class AggregateCall:
    """One aggregate that a statement selects.

    Attributes:
        name: Its name.
        argument: What it is over.
        criterion: Its FILTER, if it has one.
    """

    name: AggregateName
    argument: ColumnElement[Any]
    criterion: ColumnElement[Any] | None

    def over(self, function: Function[Any]) -> ColumnElement[Any]:
        """Return another aggregate over the same rows."""
        return function if self.criterion is None else function.filter(self.criterion)


@dataclass(frozen=True, slots=True)
class SortExpression:
    """One part of an ORDER BY.

    Attributes:
        expression: What to order by, or the name of a selected column.
        descending: Whether large values come first.
        nulls_first: Whether NULL does; None as PostgreSQL decides.
    """

    expression: ColumnElement[Any] | str
    descending: bool
    nulls_first: bool | None

    def key(self, position: int, *, text: bool) -> OrderKey:
        """Return how to order merged rows by it, once it stands in a column of theirs."""
        nulls_first = self.descending if self.nulls_first is None else self.nulls_first
        return OrderKey(position, self.descending, nulls_first, text)


def check_parts_in_python(statement: Select[*tuple[Any, ...]]) -> None:
    """Refuse what Python does not make of parts of groups, though PostgreSQL may.

    Raises:
        UnmergeableQueryError: With the clause and the way out.
    """
    if statement._having_criteria:  # noqa: SLF001 -- there is no public name
        raise UnmergeableQueryError("HAVING", "GROUP BY the shard key, or name it")
    for part in visitors.iterate(statement):
        if isinstance(part, Over):
            raise UnmergeableQueryError("a window function", "PARTITION BY the shard key")
        if isinstance(part, WithinGroup | AggregateOrderBy):
            raise UnmergeableQueryError(
                "an ordered aggregate", "GROUP BY the shard key, or name it"
            )
        if isinstance(part, FunctionElement) and name_of(part) in AGGREGATES - _AGGREGATES.keys():
            raise UnmergeableQueryError(f"{name_of(part)}()", "GROUP BY the shard key, or name it")


def aggregate_call(column: ColumnElement[Any]) -> AggregateCall | None:
    """Return the aggregate that ``column`` is, or None if it is something else.

    Raises:
        UnmergeableQueryError: The partial results of this aggregate cannot be merged.
    """
    function: ClauseElement = unlabelled(column)
    criterion = None
    if isinstance(function, FunctionFilter):
        criterion, function = function.criterion, function.func
    if not isinstance(function, Function) or function.name.lower() not in _AGGREGATES:
        return None
    name = _AGGREGATES[function.name.lower()]
    arguments = list(function.clauses)
    if len(arguments) != 1:
        raise UnmergeableQueryError(f"{name}() of several arguments", "give it one")
    argument = arguments[0]
    if isinstance(argument, UnaryExpression) and argument.operator is operators.distinct_op:
        raise UnmergeableQueryError(
            f"{name}(DISTINCT)", "GROUP BY the column and count the rows, or name the shard key"
        )
    _check_argument(name, argument)
    return AggregateCall(name, argument, criterion)


def _check_argument(name: AggregateName, argument: ColumnElement[Any]) -> None:
    exact = type(argument.type) in SUMMABLE and not contains_floats(argument)
    if name in ("sum", "avg") and not exact:
        raise UnmergeableQueryError(f"{name}() of {type(argument.type).__name__}", "cast it")
    if name in ("min", "max") and not is_orderable(argument):
        raise UnmergeableQueryError(
            f"{name}() of {type(argument.type).__name__}", "cast it, or name the shard key"
        )


def check_identity(column: ColumnElement[Any], clause: str) -> None:
    """Refuse values that Python tells apart otherwise than PostgreSQL.

    Raises:
        UnmergeableQueryError: The column is of such a type.
    """
    expression = unlabelled(column)
    if not is_told_apart_by_bytes(expression) and not is_orderable(expression):
        raise UnmergeableQueryError(
            f"{clause} of {type(expression.type).__name__}",
            "cast it to a plain type, or name the shard key",
        )


def order_key(sort: SortExpression, expression: ColumnElement[Any], position: int) -> OrderKey:
    """Return how to order merged rows by ``expression``, which stands at ``position``.

    Raises:
        UnmergeableQueryError: Python orders such values otherwise than PostgreSQL.
    """
    if _is_c_text(expression):
        return sort.key(position, text=True)
    if can_be_ranked(expression):
        return replace(sort.key(position, text=False), ranked=True)
    if not is_orderable(expression):
        raise UnmergeableQueryError(
            f"ORDER BY a {type(expression.type).__name__}",
            "cast it to a plain type, or name the shard key",
        )
    return sort.key(position, text=False)


def sort_expression(clause: ClauseElement) -> SortExpression:
    """Take one part of an ORDER BY apart."""
    descending, nulls_first = False, None
    while True:
        if isinstance(clause, UnaryExpression) and clause.modifier is operators.desc_op:
            descending = True
        elif isinstance(clause, UnaryExpression) and clause.modifier is operators.nulls_first_op:
            nulls_first = True
        elif isinstance(clause, UnaryExpression) and clause.modifier is operators.nulls_last_op:
            nulls_first = False
        elif (
            not (isinstance(clause, UnaryExpression) and clause.modifier is operators.asc_op)
            and type(clause).__visit_name__ != "label_reference"
        ):
            break
        clause = clause.element  # type: ignore[attr-defined]  # each of these wraps one
    if type(clause).__visit_name__ == "textual_label_reference":
        name: str = clause.element  # type: ignore[attr-defined]  # here it is the name
        return SortExpression(name, descending, nulls_first)
    assert isinstance(clause, ColumnElement)
    return SortExpression(unlabelled(clause), descending, nulls_first)


def position_of(sort: SortExpression, selected: Sequence[ColumnElement[Any]]) -> int | None:
    """Return which of the selected columns to order by; None if it is none of them."""
    for position, column in enumerate(selected):
        if isinstance(sort.expression, str):
            if column.key == sort.expression:
                return position
        elif sort.expression.compare(unlabelled(column)):
            return position
    return None


def _is_c_text(expression: ColumnElement[Any]) -> bool:
    if isinstance(expression, BinaryExpression) and expression.operator is operators.collate:
        collation = expression.right
        return isinstance(collation, CollationClause) and collation.collation == "C"
    # A collation that is written inside prevails over those of columns.
    if any(isinstance(part, CollationClause | TypeCoerce) for part in visitors.iterate(expression)):
        return False
    return type(expression.type) in TEXTS and getattr(expression.type, "collation", None) == "C"
