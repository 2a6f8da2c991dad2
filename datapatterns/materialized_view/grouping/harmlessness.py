"""Which expressions no values whatever make fail, and which are NULL if a part of them is.

A row that has changed need not meet the conditions that protect an expression in the query; there,
a division or a cast from text would raise, while the query itself is fine. What is not recognised
counts as harmful.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import (
    BindParameter,
    Case,
    Cast,
    Column,
    ColumnClause,
    Date,
    DateTime,
    Enum,
    Extract,
    FunctionElement,
    Integer,
    Label,
    Null,
    Numeric,
    String,
    UnaryExpression,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    ClauseList,
    ExpressionClauseList,
    False_,
    Grouping,
    True_,
)

COMPARISONS = frozenset({
    operators.eq, operators.ne, operators.lt, operators.le, operators.gt, operators.ge,
})  # fmt: skip
LIKE_COMPARISONS = frozenset({operators.in_op, operators.between_op})

_CONSTANT = re.compile(r"\*|-?\d+(\.\d+)?|'[^'\\]*'|null|true|false", re.IGNORECASE)
_OF_TODAY = re.compile(r"\b(now|today|tomorrow|yesterday)\b", re.IGNORECASE)
_HARMLESS = COMPARISONS | LIKE_COMPARISONS | {
    operators.is_, operators.is_not, operators.not_in_op, operators.is_distinct_from,
    operators.is_not_distinct_from, operators.not_between_op, operators.and_, operators.or_,
    operators.comma_op, operators.inv, operators.is_true, operators.is_false,
}  # fmt: skip
_DIVISIONS = frozenset({operators.mod, operators.floordiv, operators.truediv})
_STRICT_FUNCTIONS = frozenset({
    "btrim", "char_length", "date", "date_part", "date_trunc", "initcap", "length", "lower",
    "ltrim", "md5", "reverse", "rtrim", "timezone", "trim", "upper",
})  # fmt: skip
_FUNCTIONS = _STRICT_FUNCTIONS | {"coalesce", "greatest", "least", "nullif"}


def is_harmless(expression: Any) -> bool:  # noqa: ANN401 -- any part of a query
    """Return whether no combination of values makes the expression fail."""
    rules = (rule for kinds, rule in _RULES if isinstance(expression, kinds))
    rule = next(rules, None)
    return rule is not None and rule(expression)


def null_if_null(expression: Any) -> list[Any]:  # noqa: ANN401
    """Return the parts of which none can be NULL unless the expression is."""
    kinds: list[tuple[type, Callable[[Any], Iterable[Any]]]] = [
        (Grouping, lambda grouping: [grouping.element]),
        (Label, lambda label: [label.element]),
        (Cast, lambda cast: [cast.clause]),
        (Extract, lambda extract: [extract.expr]),
        (FunctionElement, lambda f: f.clauses if _name(f) in _STRICT_FUNCTIONS else []),
        (BinaryExpression, lambda o: [o.left, o.right] if _is_strict(o) else []),
    ]
    parts = (parts(expression) for kind, parts in kinds if isinstance(expression, kind))
    return [*next(parts, [])]


def is_constant(element: ColumnClause[Any]) -> bool:
    """Return whether text stands for a value, and hides nothing."""
    known = element.is_literal and _CONSTANT.fullmatch(element.name) is not None
    return known and _OF_TODAY.search(element.name) is None


def is_of_today(cast: Cast[Any]) -> bool:
    """Return whether a word is made a date, as 'today' is: by each refresh another one."""
    word = getattr(cast.clause, "value", None)
    to_text = isinstance(cast.type, String)
    return isinstance(word, str) and not to_text and _OF_TODAY.search(word) is not None


def _all_harmless(parts: Iterable[Any]) -> bool:
    return all(is_harmless(part) for part in parts)


def _is_harmless_operation(operation: BinaryExpression[Any]) -> bool:
    if operation.operator in _DIVISIONS:
        divisor = getattr(operation.right, "value", None)
        if not isinstance(operation.left.type, Integer) or not isinstance(divisor, int):
            return False
        return divisor > 0 and is_harmless(operation.left)
    joins_texts = operation.operator is operators.concat_op and all(
        isinstance(side.type, String) for side in (operation.left, operation.right)
    )
    known = joins_texts or operation.operator in _HARMLESS or _names_zone(operation)
    return known and _all_harmless((operation.left, operation.right))


def _is_harmless_cast(cast: Cast[Any]) -> bool:
    target, source = cast.type, cast.clause.type
    to_text = isinstance(target, String) and not isinstance(target, Enum)
    between_times = isinstance(target, Date | DateTime) and isinstance(source, Date | DateTime)
    widens = type(target) is Numeric and target.precision is None and isinstance(source, Integer)
    return (to_text or between_times or widens) and is_harmless(cast.clause)


def _is_strict(operation: BinaryExpression[Any]) -> bool:
    return operation.operator in _DIVISIONS or _names_zone(operation)


def _names_zone(operation: BinaryExpression[Any]) -> bool:
    return str(getattr(operation.operator, "opstring", "")).upper() == "AT TIME ZONE"


def _name(function: FunctionElement[Any]) -> str | None:
    """Return the name of a function that is not said to be somebody's own."""
    return None if getattr(function, "packagenames", None) else function.name.lower()


_Rule = tuple[type | tuple[type, ...], Callable[[Any], bool]]
_RULES: list[_Rule] = [
    ((Column, BindParameter, Null, True_, False_), lambda _: True),
    (ColumnClause, is_constant),
    (Case, lambda case: _all_harmless(case.get_children())),
    (Cast, _is_harmless_cast),
    (Extract, lambda extract: is_harmless(extract.expr)),
    (FunctionElement, lambda f: _name(f) in _FUNCTIONS and _all_harmless(f.clauses)),
    ((Grouping, Label), lambda wrapped: is_harmless(wrapped.element)),
    (UnaryExpression, lambda e: e.operator in _HARMLESS and is_harmless(e.element)),
    (BinaryExpression, _is_harmless_operation),
    (
        (ClauseList, ExpressionClauseList),
        lambda listed: listed.operator in _HARMLESS and _all_harmless(listed.clauses),
    ),
]
