"""A part of a view that is told by its keys, so that the query can be run for that part alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from psycopg import sql
from sqlalchemy import ColumnElement, Table, and_, false, literal_column, or_, true, type_coerce
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.types import NullType

from datapatterns.change_log.partition_bounds import Between, Bound, Bounds

Within: TypeAlias = Callable[[Sequence[ColumnElement[Any]]], ColumnElement[bool]]
"""Returns whether keys, in order, are in a part of the view; NULL says no, too."""

PlacedBounds: TypeAlias = tuple[tuple[int, Bound], ...]
"""Bounds, each with the number of the key that they are about."""


@dataclass(frozen=True, slots=True)
class Anew:
    """A part of a view that is computed anew while changes are applied to the rest.

    Attributes:
        within: Which part.
        truncated: The partitions whose truncation concerns no other rows, as each table's log
            tells of it.
    """

    within: Within
    truncated: Mapping[Table, frozenset[str]] = field(default_factory=dict)


def placed(bounds: Iterable[Bounds], places: Mapping[str, int]) -> list[PlacedBounds] | None:
    """Return what ``bounds`` say of keys, of which ``places`` has the numbers by column.

    A part may be larger than a partition where a key does not show all that bounds it. None if
    one of them says nothing of any key.
    """
    found = [
        tuple((places[bound.column], bound) for bound in each if bound.column in places)
        for each in bounds
    ]
    return found if all(found) else None


def within_any(parts: Iterable[PlacedBounds]) -> Within:
    """Return whether keys are within one of the bounds."""
    wanted = [*parts]

    def within(keys: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        ways = (and_(true(), *(_holds(keys[n], bound) for n, bound in part)) for part in wanted)
        return or_(false(), *ways)

    return within


def either(parts: Sequence[Within]) -> Within:
    """Return whether keys are in one of these parts."""
    return lambda keys: or_(false(), *(within(keys) for within in parts))


def outside(within: Within, keys: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    """Return whether keys are not in the part, whatever is NULL."""
    # In parentheses: NOT a IS NOT TRUE, as SQLAlchemy writes it, is NOT (a IS NOT TRUE).
    return Grouping(within(keys)).is_not(true())


def _holds(key: ColumnElement[Any], bound: Bound) -> ColumnElement[bool]:
    # As the server compares them, whatever a type of the application's makes of operators.
    bare: ColumnElement[Any] = type_coerce(key, NullType())
    if isinstance(bound, Between):
        ends = [(">=", bound.lower), ("<=" if bound.includes_upper else "<", bound.upper)]
        return and_(
            true(), *(bare.bool_op(sign)(_written(end)) for sign, end in ends if end is not None)
        )
    ways: list[ColumnElement[bool]] = [bare.is_(None)] if bound.has_null else []
    if bound.values:
        ways.append(bare.in_([_written(value) for value in bound.values]))
    return or_(false(), *ways)


def _written(value: str) -> ColumnElement[Any]:
    """Return the value as a constant that takes the type of what it is compared with.

    No parameter: the planner leaves out partitions by it.
    """
    return literal_column(sql.Literal(value).as_string(None))
