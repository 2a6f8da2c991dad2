"""Keys that are equal but not the same, as 1.0 and 1.00 are: what keeps them apart.

Compared within one statement only and beside the values, so that the session's settings, which
texts of dates and floats depend on, are the same on both sides and decide nothing: among equal
values the text differs wherever the value does.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Date,
    DateTime,
    FromClause,
    Integer,
    LargeBinary,
    Text,
    Uuid,
    and_,
    func,
)

from datapatterns.materialized_view.counting_plan import CountingPlan, Shape

_SAME_IF_EQUAL = (Boolean, Date, DateTime, Integer, LargeBinary, Uuid)


def imaged(plan: CountingPlan) -> list[int]:
    """Return the numbers of the keys whose equal values may differ, if that matters."""
    return [number for number in range(len(plan.keys)) if _needs_image(plan, number)]


def images(
    plan: CountingPlan, rows: FromClause, key_names: Sequence[str]
) -> list[ColumnElement[Any]]:
    """Return what tells equal keys of ``rows`` apart, if that matters."""
    return [_image(rows.c[key_names[number]]) for number in imaged(plan)]


def same_key(
    plan: CountingPlan, one: FromClause, other: FromClause, key_names: Sequence[str]
) -> ColumnElement[bool]:
    """Return whether rows of both have the same key, NULLs included."""
    pairs = zip(images(plan, one, key_names), images(plan, other, key_names), strict=True)
    return and_(
        *(one.c[name].is_not_distinct_from(other.c[name]) for name in key_names),
        *(left == right for left, right in pairs),
    )


def _needs_image(plan: CountingPlan, number: int) -> bool:
    keys = [branch.keys[number] for branch in plan.branches]
    return plan.shape is Shape.ROWS and not all(map(_is_same_if_equal, keys))


def _is_same_if_equal(key: ColumnElement[Any]) -> bool:
    # Of columns alone: what extract() gives is called an integer, and is a numeric.
    return isinstance(key, Column) and isinstance(key.type, _SAME_IF_EQUAL)


def _image(key: ColumnElement[Any]) -> ColumnElement[Any]:
    # Not a cast, which drops the blanks at the end of bpchar.
    return func.concat(key, type_=Text())
