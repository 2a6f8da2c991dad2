"""Expressions that no combination of values makes fail, said so that this is true.

Counting evaluates conditions, keys and measures on rows that never were together, as when a row
is corrected twice between two refreshes. What raises there would break the refresh while the
query itself is fine: a division, or a product that does not fit. So operands are widened to
numeric first, and only functions that answer for every value are let through. What these names
stand for in a database is asked of the server, in `trusted_functions`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Case,
    Cast,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Extract,
    False_,
    FromClause,
    FunctionElement,
    Integer,
    Null,
    Numeric,
    SmallInteger,
    String,
    Text,
    True_,
    UnaryExpression,
    cast,
    func,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BooleanClauseList,
    ClauseList,
    ExpressionClauseList,
    Grouping,
)
from sqlalchemy.sql.visitors import iterate, replacement_traverse

from datapatterns.materialized_view.sources import NotCountableError, own_source, shown

_COMPARING = frozenset({
    operators.eq, operators.ne, operators.lt, operators.le, operators.gt, operators.ge,
    operators.is_, operators.is_not, operators.in_op, operators.not_in_op,
    operators.is_distinct_from, operators.is_not_distinct_from,
    operators.between_op, operators.not_between_op, operators.and_, operators.or_,
    operators.comma_op, operators.inv, operators.is_true, operators.is_false,
})  # fmt: skip
_ARITHMETIC = frozenset({operators.add, operators.sub, operators.mul, operators.neg})
_CLAUSES = (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    Case,
    ClauseList,
    ExpressionClauseList,
    False_,
    Grouping,
    Null,
    True_,
    UnaryExpression,
)
_SYNTAX = frozenset({"coalesce", "greatest", "least", "nullif"})
_FUNCTIONS = {
    name: name
    for name in ("btrim", "char_length", "date_trunc", "length", "lower", "ltrim", "rtrim", "upper")
} | {"trim": "btrim", "timezone": "timezone"}
_UNITS = frozenset({
    "century", "day", "decade", "hour", "microseconds", "millennium", "milliseconds", "minute",
    "month", "quarter", "second", "week", "year",
})  # fmt: skip
_FIELDS = frozenset({
    "century", "day", "decade", "dow", "doy", "isodow", "isoyear", "month", "quarter", "week",
    "year",
})  # fmt: skip
_WIDER = (SmallInteger, Integer, BigInteger, Numeric)


def totally(expression: ColumnElement[Any], sources: Iterable[FromClause]) -> ColumnElement[Any]:
    """Return ``expression`` so that it answers for whatever values.

    Args:
        expression: What a query says of its tables.
        sources: These tables.

    Raises:
        NotCountableError: Some part of it may fail, or is not known not to.
    """
    own = [*sources]
    for part in iterate(expression):
        if not _is_known(part, own):
            raise NotCountableError(
                f"{shown(part) if isinstance(part, ColumnElement) else part} in"
                f" {shown(expression)} is more than columns, comparisons and what never fails"
            )
    return _said_safely(expression)


def calculated_columns(expression: ColumnElement[Any]) -> Iterator[Column[Any]]:
    """Return the columns that ``expression`` calculates with."""
    for part in iterate(expression):
        if getattr(part, "operator", None) in _ARITHMETIC:
            yield from (column for column in iterate(part) if isinstance(column, Column))


def is_calculation(expression: ColumnElement[Any]) -> bool:
    """Return whether ``expression`` is made of columns and numbers by + - * alone."""
    for part in iterate(expression):
        if isinstance(part, Column | BindParameter | Grouping | BinaryExpression | UnaryExpression):
            operator = getattr(part, "operator", None)
            if not isinstance(part, Grouping) and operator not in {None, *_ARITHMETIC}:
                return False
        elif not (isinstance(part, Cast) and _keeps_value(part)):
            return False
    return True


def _is_known(part: Any, sources: list[FromClause]) -> bool:  # noqa: ANN401
    if isinstance(part, Column):
        return own_source(part, sources) is not None
    if isinstance(part, Cast):
        return _is_plain_cast(part)
    if isinstance(part, Extract):
        return part.field.lower() in _FIELDS
    if isinstance(part, FunctionElement):
        return _is_total(part)
    operator = getattr(part, "operator", None)
    known = operator is None or operator in _COMPARING or operator in _ARITHMETIC
    return isinstance(part, _CLAUSES) and known


def _is_plain_cast(part: Cast[Any]) -> bool:
    """Return whether each value has a place in the type; whether it really has, the server says."""
    to, given = part.type, part.clause.type
    if getattr(to, "precision", None) or getattr(to, "length", None):
        return False
    if isinstance(to, String):
        return type(to) in {String, Text} and to.collation is None and isinstance(given, String)
    if isinstance(to, Date):
        return isinstance(given, Date | DateTime)
    widths = [number for number, kind in enumerate(_WIDER) if type(to) is kind]
    return bool(widths) and type(given) in _WIDER[: widths[0] + 1]


def _is_total(function: FunctionElement[Any]) -> bool:
    if getattr(function, "packagenames", ()) not in {(), ("pg_catalog",)}:
        return False
    name, arguments = str(getattr(function, "name", "")).lower(), [*function.clauses]
    if name in {"date_trunc", "timezone"}:
        word = arguments[0] if len(arguments) == 2 else None  # noqa: PLR2004 -- and of what
        given = word.value if isinstance(word, BindParameter) else None
        return isinstance(given, str) and (name == "timezone" or given.lower() in _UNITS)
    return name in _SYNTAX or (name in _FUNCTIONS and len(arguments) == 1)


def _said_safely(expression: ColumnElement[Any]) -> ColumnElement[Any]:
    def replace(element: Any, **_: Any) -> Any:  # noqa: ANN401
        if getattr(element, "operator", None) in _ARITHMETIC:
            return _widened(element)
        if isinstance(element, FunctionElement) and not isinstance(element, Extract):
            return _qualified(element)
        return None

    safe: ColumnElement[Any] = replacement_traverse(expression, {}, replace)
    return safe


def _qualified(function: FunctionElement[Any]) -> ColumnElement[Any] | None:
    """Return the call so that no function of that name in another schema answers it."""
    name = str(getattr(function, "name", "")).lower()
    if name not in _FUNCTIONS:
        arguments = [_said_safely(argument) for argument in function.clauses]
        return getattr(func, name)(*arguments, type_=function.type)  # type: ignore[no-any-return]
    arguments = [_said_safely(argument) for argument in function.clauses]
    call = getattr(func.pg_catalog, _FUNCTIONS[name])
    return call(*arguments, type_=function.type)  # type: ignore[no-any-return]


def _widened(operand: Any) -> ColumnElement[Any]:  # noqa: ANN401
    """Return a calculation in numerics, which no sum or product of integers leaves."""
    if isinstance(operand, Grouping):
        return Grouping(_widened(operand.element))
    if isinstance(operand, Column | BindParameter) and isinstance(operand.type, Integer | Numeric):
        return cast(operand, Numeric)
    if isinstance(operand, Cast) and _keeps_value(operand):
        return _widened(operand.clause)
    operator = getattr(operand, "operator", None)
    if isinstance(operand, UnaryExpression) and operator in _ARITHMETIC:
        return -_widened(operand.element)
    if isinstance(operand, BinaryExpression) and operator in _ARITHMETIC:
        widened: ColumnElement[Any] = operator(_widened(operand.left), _widened(operand.right))
        return widened
    if isinstance(operand, FunctionElement) and operand.name == "coalesce":
        return func.coalesce(*map(_widened, operand.clauses), type_=Numeric())
    raise NotCountableError(f"{shown(operand)} is calculated with, and is no exact number")


def _keeps_value(part: Cast[Any]) -> bool:
    """Return whether the server's cast, which may only widen, is to a type of exact numbers."""
    return _is_plain_cast(part) and isinstance(part.type, Integer | Numeric)
