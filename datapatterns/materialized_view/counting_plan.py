"""What has to be counted to keep a query: values that `algebra` reads and `counting` writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, ColumnElement, FromClause, Table
from sqlalchemy.sql.visitors import iterate

from datapatterns.materialized_view.sources import table_of


class Shape(StrEnum):
    """How the rows of a query become those that its view shows.

    GROUPS shows a row for each key while it has rows; without keys, always one.
    DISTINCT shows each key once while it has rows.
    ROWS shows each key as many times as it has rows; keys that are equal but not the same, as
    1.0 and 1.00 are, are kept apart.
    """

    GROUPS = "groups"
    DISTINCT = "distinct"
    ROWS = "rows"


class OutputKind(StrEnum):
    """What a column of the view shows."""

    KEY = "key"
    ROWS = "rows"
    COUNT = "count"
    SUM = "sum"
    AVG = "avg"
    ALL = "all"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Output:
    """A column of the view: its kind, and which key or measure it shows.

    Attributes:
        kind: What it shows.
        index: Of which key or measure.
        deciding: Of which other measure, whose rows say false for ALL, true for ANY.
    """

    kind: OutputKind
    index: int = 0
    deciding: int = 0


@dataclass(frozen=True, slots=True)
class Measure:
    """What is counted where it is not NULL, and perhaps summed.

    Attributes:
        is_summed: Whether its sum is kept, too.
        is_finite: Whether it is a sum of integers; numerics may be NaN or infinite.
    """

    is_summed: bool
    is_finite: bool


@dataclass(frozen=True, slots=True)
class Branch:
    """One of the queries whose rows are counted together.

    Attributes:
        sources: The tables, each as often as it occurs.
        conditions: What must hold of a row of all of them.
        keys: What rows are told apart by.
        measures: What is counted or summed, as the plan lists it.
        values: The same without the conditions of FILTER clauses.
    """

    sources: tuple[FromClause, ...]
    conditions: tuple[ColumnElement[Any], ...]
    keys: tuple[ColumnElement[Any], ...]
    measures: tuple[ColumnElement[Any], ...] = ()
    values: tuple[ColumnElement[Any], ...] = ()

    @property
    def parts(self) -> Iterator[ColumnElement[Any]]:
        """Each expression in it."""
        yield from self.conditions
        yield from self.keys
        yield from self.measures


@dataclass(frozen=True, slots=True)
class CountingPlan:
    """What a countable query is made of.

    Attributes:
        shape: How counted rows are shown.
        branches: Whose rows are counted, all with the same keys and measures.
        measures: What is counted or summed.
        outputs: What the columns of the view show, in order.
    """

    shape: Shape
    branches: tuple[Branch, ...]
    measures: tuple[Measure, ...]
    outputs: tuple[Output, ...]

    @property
    def keys(self) -> tuple[ColumnElement[Any], ...]:
        """What rows are told apart by, as the first branch says it."""
        return self.branches[0].keys

    @property
    def tables(self) -> list[Table]:
        """Return each table once."""
        sources = (source for branch in self.branches for source in branch.sources)
        return list(dict.fromkeys(table_of(source) for source in sources))

    def columns_of(self, table: Table) -> list[Column[Any]]:
        """Return the columns of ``table`` that matter, in the table's order."""
        named = {
            column.key
            for branch in self.branches
            for part in branch.parts
            for column in iterate(part)
            if isinstance(column, Column) and table_of(column.table) is table
        }
        return [column for column in table.columns if column.key in named]
