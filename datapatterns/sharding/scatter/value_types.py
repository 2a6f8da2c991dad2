"""Types of which Python and PostgreSQL have the same idea."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Cast, ColumnElement, Function, TypeCoerce, types
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ClauseElement

# Exactly these classes: a subclass may compare otherwise, or change values on their way.
SMALL_INTEGERS = frozenset((types.SmallInteger, types.Integer, types.SMALLINT, types.INTEGER))
"""Those whose sums are `bigint`."""
_INTEGERS = SMALL_INTEGERS.union((types.BigInteger, types.BIGINT))
_FLOATS = (types.Float, types.FLOAT, types.REAL, types.Double, types.DOUBLE, types.DOUBLE_PRECISION)
SUMMABLE = _INTEGERS.union((types.Numeric, types.NUMERIC, types.DECIMAL))
"""Those whose sums do not depend on the order of adding."""
ORDERABLE = SUMMABLE.union(
    _FLOATS,
    (types.Boolean, types.BOOLEAN, types.Date, types.DATE, types.DateTime, types.TIMESTAMP),
    (postgresql.TIMESTAMP, types.Uuid, types.UUID, types.LargeBinary, postgresql.BYTEA),
)
"""Those that Python orders as PostgreSQL does."""
TEXTS = frozenset(
    (types.String, types.Text, types.Unicode, types.UnicodeText, types.VARCHAR, types.TEXT)
)


# Functions of which SQLAlchemy knows no type, and which may give floats.
_FLOAT_FUNCTIONS = frozenset(("date_part", "power"))
# Others may have been created as ones to which different texts are equal.
_DETERMINISTIC = frozenset((None, "C", "POSIX", "default", "ucs_basic"))


def is_orderable(expression: ColumnElement[Any]) -> bool:
    """Return whether Python orders values of ``expression`` as PostgreSQL does."""
    type_ = expression.type
    known = type(type_) in ORDERABLE and getattr(type_, "as_uuid", True)
    return known and arrives_exactly(expression)


def arrives_exactly(expression: ColumnElement[Any]) -> bool:
    """Return whether numbers reach Python with all the digits that PostgreSQL has of them.

    As floats, decimals that differ may be equal; and SQLAlchemy rounds what should be a decimal
    but comes as a float.
    """
    type_ = expression.type
    if any(isinstance(part, TypeCoerce) for part in _parts_of_value(expression)):
        return False
    if isinstance(type_, types.Float):
        return not type_.asdecimal
    return not isinstance(type_, types.Numeric) or (
        type_.asdecimal and not contains_floats(expression)
    )


def contains_floats(expression: ColumnElement[Any]) -> bool:
    """Return whether PostgreSQL computes ``expression`` from floats, so that it gives one."""
    return any(
        isinstance(getattr(part, "type", None), types.Float)
        or (isinstance(part, Function) and part.name.lower() in _FLOAT_FUNCTIONS)
        for part in _parts_of_value(expression)
    )


def is_told_apart_by_bytes(expression: ColumnElement[Any]) -> bool:
    """Return whether ``expression`` is text of which equal values are the same in all bytes."""
    if type(expression.type) not in TEXTS:
        return False
    named = (
        getattr(each, "collation", None)
        for part in visitors.iterate(expression)
        for each in (part, getattr(part, "type", None))
    )
    return _DETERMINISTIC.issuperset(named)


def _parts_of_value(element: ClauseElement) -> Iterator[ClauseElement]:
    """Yield what a number is made of: not what is cast, and no conditions."""
    yield element
    if isinstance(element, Cast):
        return
    for child in element.get_children():
        if not isinstance(getattr(child, "type", None), types.Boolean):
            yield from _parts_of_value(child)
