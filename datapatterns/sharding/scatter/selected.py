"""What a SELECT selects, and which of it are aggregates and window functions."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Function, FunctionFilter, Over, Select
from sqlalchemy.dialects.postgresql.ext import DistinctOnClause
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ClauseElement, ClauseList, Grouping, Label

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.scatter.refusals import AGGREGATES

AnySelect: TypeAlias = Select[*tuple[Any, ...]]


def selected_columns(statement: AnySelect) -> list[ColumnElement[Any]]:
    """Return the columns that a statement selects, those of entities one by one."""
    return list(statement.selected_columns)


def selects_only_columns(statement: AnySelect) -> bool:
    """Return whether a statement selects no entity."""
    return all(
        isinstance(column["expr"], ColumnElement)
        or (
            isinstance(column["expr"], QueryableAttribute)
            and column["expr"] is not column["entity"]
        )
        for column in statement.column_descriptions
    )


def windows_in(clause: visitors.ExternallyTraversible) -> list[Over[Any]]:
    """Return the window functions' calls in ``clause``."""
    return [part for part in visitors.iterate(clause) if isinstance(part, Over)]


def window_functions(windows: Iterable[Over[Any]]) -> frozenset[int]:
    """Return the ids of what stands before OVER, which is no aggregate of a group."""
    found: set[int] = set()
    for window in windows:
        element: ClauseElement = window.element
        found.add(id(element))
        if isinstance(element, FunctionFilter):
            found.add(id(element.func))
    return frozenset(found)


def aggregates_in(clause: ClauseElement) -> bool:
    """Return whether any part of ``clause`` is an aggregate of a group."""
    other = window_functions(windows_in(clause))
    return any(
        isinstance(part, Function) and part.name.lower() in AGGREGATES and id(part) not in other
        for part in visitors.iterate(clause)
    )


def clauses_of(clause: ClauseElement | None) -> Sequence[ClauseElement]:
    """Return what a list of clauses holds; of one that is none, itself."""
    if clause is None:
        return ()
    return clause.clauses if type(clause) is ClauseList else (clause,)


def groups_of(statement: AnySelect) -> list[ColumnElement[Any]]:
    """Return what a statement groups by.

    Raises:
        UnmergeableQueryError: By a name, which may mean a column or what is selected under it.
    """
    # A function is also a FROM clause to SQLAlchemy, which then makes a list of its columns.
    listed = [part for clause in statement._group_by_clauses for part in clauses_of(clause)]  # noqa: SLF001
    for part in listed:
        if type(part).__visit_name__ == "textual_label_reference":
            raise UnmergeableQueryError("GROUP BY a name", "group by the expression")
    return [unlabelled(part) for part in listed]


def unlabelled(clause: ClauseElement) -> ColumnElement[Any]:
    """Return the expression itself, without the name that it is selected under."""
    while isinstance(clause, Label | Grouping) or type(clause).__visit_name__ == "label_reference":
        clause = clause.element  # type: ignore[attr-defined]  # each of these wraps one
    assert isinstance(clause, ColumnElement)
    return clause


def distinct_on_of(statement: AnySelect) -> Sequence[ColumnElement[Any]]:
    """Return what DISTINCT ON names; nothing if there is none."""
    named = [*statement._distinct_on]  # noqa: SLF001 -- there is no public name
    extension = statement._pre_columns_clause  # noqa: SLF001 -- nor for this
    if isinstance(extension, DistinctOnClause):
        named += extension._distinct_on  # noqa: SLF001 -- nor for this
    return named
