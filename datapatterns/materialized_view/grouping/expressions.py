"""What an expression names, and how to say it of other columns.

Like all that reads queries here: what is not recognised is refused, so that a construct nobody has
thought of costs time, not truth.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BindParameter,
    BooleanClauseList,
    Case,
    Cast,
    Column,
    ColumnClause,
    ColumnElement,
    Extract,
    FromClause,
    FunctionElement,
    FunctionFilter,
    Label,
    Null,
    Tuple,
    TypeClause,
    TypeCoerce,
    UnaryExpression,
    WithinGroup,
    column,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    AggregateOrderBy,
    BinaryExpression,
    ClauseList,
    CollationClause,
    ExpressionClauseList,
    False_,
    Grouping,
    True_,
)
from sqlalchemy.sql.visitors import iterate, replacement_traverse

from datapatterns.materialized_view.grouping.harmlessness import (
    COMPARISONS,
    LIKE_COMPARISONS,
    is_constant,
    is_harmless,
    is_of_today,
    null_if_null,
)
from datapatterns.materialized_view.grouping.join_tree import Condition
from datapatterns.materialized_view.sources import DIALECT, own_source

_READABLE = (
    AggregateOrderBy, BinaryExpression, BindParameter, Case, Cast, ClauseList, CollationClause,
    Column, ExpressionClauseList, Extract, False_, FunctionElement, FunctionFilter, Grouping, Label,
    Null, True_, Tuple, TypeClause, TypeCoerce, UnaryExpression, WithinGroup, aggregate_order_by,
)  # fmt: skip


def unreadable_part(expression: Any) -> Any | None:  # noqa: ANN401 -- any part of a query
    """Return a part that may hide something, such as a subquery or text, or None."""
    for part in iterate(expression):
        if isinstance(part, Column) or (isinstance(part, ColumnClause) and is_constant(part)):
            continue
        if not isinstance(part, _READABLE) or (isinstance(part, Cast) and is_of_today(part)):
            return part
    return None


def occurrences_in(expression: Any, sources: Sequence[FromClause]) -> frozenset[int]:  # noqa: ANN401
    """Return which of ``sources`` the expression names columns of."""
    named = (own_source(part, sources) for part in iterate(expression))
    return frozenset(_place(source, sources) for source in named if source is not None)


def columns_in(expression: Any, sources: Sequence[FromClause]) -> list[tuple[int, str]]:  # noqa: ANN401
    """Return the columns that the expression names: the source's number and the key, once each."""
    columns = (part for part in iterate(expression) if isinstance(part, Column))
    named = ((own_source(column, sources), str(column.key)) for column in columns)
    found = ((_place(source, sources), key) for source, key in named if source is not None)
    return list(dict.fromkeys(found))


def placed(
    expression: Any,  # noqa: ANN401
    sources: Sequence[FromClause],
    columns: Mapping[tuple[int, str], ColumnElement[Any]] | None = None,
) -> Any:  # noqa: ANN401
    """Return the expression with its values written out, said of ``columns`` if given.

    Values are written as a plain view has them: 'a' takes the type of what it is compared with,
    which 'a'::varchar may not; and two equal expressions remain equal.
    """

    def replace(element: Any, **_: Any) -> Any:  # noqa: ANN401
        if isinstance(element, BindParameter):
            return element.render_literal_execute()
        source = own_source(element, sources)
        if source is None:
            return None
        # Taking an expression apart copies the aliases in it; the query has to go on naming its
        # own ones.
        if columns is None:
            return source.c[element.key]
        return columns[_place(source, sources), element.key]

    # Of the expression itself, not of a copy: values are called by where they are in memory, and
    # two would share a name if a copy made room for another.
    return replacement_traverse(expression, {}, replace)


def same_expression(one: Any, other: Any, sources: Sequence[FromClause]) -> bool:  # noqa: ANN401
    """Return whether both say the same of the same tables."""
    shown = []
    for expression in (one, other):
        # By number: two aliases without a name are both called table_1.
        numbered: dict[tuple[int, str], ColumnElement[Any]] = {
            (occurrence, key): column(f"{occurrence} {key}")
            for occurrence, key in columns_in(expression, sources)
        }
        said = placed(expression, sources, numbered)
        shown.append(str(said.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})))
    return shown[0] == shown[1]


def conjuncts(expression: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield the conditions that all have to hold."""
    if isinstance(expression, Grouping):
        yield from conjuncts(expression.element)
    elif isinstance(expression, BooleanClauseList | ExpressionClauseList) and (
        expression.operator is operators.and_
    ):
        for part in expression.clauses:
            yield from conjuncts(part)
    elif not isinstance(expression, True_):
        yield expression


def condition(expression: Any, sources: Sequence[FromClause]) -> Condition:  # noqa: ANN401
    """Return what is known of a condition."""
    named, strict, compares = occurrences_in(expression, sources), frozenset[int](), False
    if isinstance(expression, BinaryExpression):
        sides = [_null_without(expression.left, sources)]
        if expression.operator in COMPARISONS:
            sides.append(_null_without(expression.right, sources))
            compares = all(len(side) == 1 for side in sides) and sides[0] != sides[1]
        is_not_null = expression.operator is operators.is_not and isinstance(expression.right, Null)
        if expression.operator in COMPARISONS | LIKE_COMPARISONS or is_not_null:
            strict = strict.union(*sides)
    compares = compares and strict == named
    return Condition(
        expression, named, strict, evaluable=is_harmless(expression), compares=compares
    )


def _null_without(expression: Any, sources: Sequence[FromClause]) -> frozenset[int]:  # noqa: ANN401
    """Return the sources without which the expression is NULL."""
    if isinstance(expression, Column):
        return occurrences_in(expression, sources)
    parts = (_null_without(part, sources) for part in null_if_null(expression))
    return frozenset[int]().union(*parts)


def _place(source: FromClause, sources: Sequence[FromClause]) -> int:
    return next(number for number, own in enumerate(sources) if own is source)
