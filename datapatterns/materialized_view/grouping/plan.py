"""What a query that can be kept by groups is made of."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Select,
    Table,
    and_,
    case,
    join,
    select,
    true,
)
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.sql.visitors import iterate

from datapatterns.materialized_view.grouping.expressions import columns_in, placed
from datapatterns.materialized_view.grouping.harmlessness import is_harmless
from datapatterns.materialized_view.grouping.join_tree import Joined, JoinKind, JoinTree, Node
from datapatterns.materialized_view.sources import table_of


@dataclass(frozen=True, slots=True)
class Key:
    """A part of what tells groups apart.

    Attributes:
        expression: What it is, said of one table.
        occurrence: That table's number.
        shown_by: The number of the output that shows it, or None.
    """

    expression: ColumnElement[Any]
    occurrence: int
    shown_by: int | None


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A query whose rows for one key depend on nothing but joined rows with that key.

    Attributes:
        sources: The tables, each as often as it occurs; elsewhere they are numbers.
        tree: How they are joined, and what must hold of them.
        keys: What changes are followed by: what the query groups by, or part of that; where it
            does not group, columns that it shows.
        outputs: What it shows, in order.
        output_names: What that is called.
        groups: What it groups by.
        having: What must hold of a group.
        distinct: Whether it shows equal rows once.
    """

    sources: tuple[FromClause, ...]
    tree: JoinTree
    keys: tuple[Key, ...]
    outputs: tuple[ColumnElement[Any], ...]
    output_names: tuple[str, ...]
    groups: tuple[ColumnElement[Any], ...]
    having: tuple[ColumnElement[Any], ...]
    distinct: bool

    @property
    def tables(self) -> list[Table]:
        """Return each table once."""
        return list(dict.fromkeys(table_of(source) for source in self.sources))

    def columns_of(self, table: Table) -> list[Column[Any]]:
        """Return the columns of ``table`` that the query names, in the table's order."""
        conditions = (c.expression for c in (*self.tree.where, *_conditions(self.tree.root)))
        parts = (*conditions, *self.outputs, *self.groups, *self.having)
        named = {
            column.key
            for part in parts
            for column in iterate(part)
            if isinstance(column, Column) and table_of(column.table) is table
        }
        return [column for column in table.columns if column.key in named]

    @property
    def key_columns(self) -> list[tuple[int, str]]:
        """Return the columns that keys are made of: a table's number and the column's key."""
        parts = (columns_in(key.expression, self.sources) for key in self.keys)
        return list(dict.fromkeys(column for part in parts for column in part))

    @property
    def nullable_key_tables(self) -> list[int]:
        """Return the tables with keys that an outer join may leave out."""
        nullable = self.tree.nullable()
        return sorted({key.occurrence for key in self.keys if key.occurrence in nullable})

    @property
    def shown_columns(self) -> list[str]:
        """Return what stored outputs are called."""
        return [f"column_{number}" for number in range(len(self.outputs))]

    @property
    def stored_keys(self) -> list[str]:
        """Return which stored column holds which key; those not shown are stored beside."""
        return [
            f"key_{number}" if key.shown_by is None else f"column_{key.shown_by}"
            for number, key in enumerate(self.keys)
        ]

    @property
    def stored_columns(self) -> list[str]:
        """Return what all stored columns are called, in order."""
        hidden = (name for name in self.stored_keys if name not in self.shown_columns)
        return [*self.shown_columns, *hidden]

    def key_values(self) -> list[Any]:
        """Return the keys as the query's FROM clause gives them, for conditions on its rows.

        PostgreSQL looks at the cheapest condition first. What might fail for rows that the query
        leaves out, such as a quotient, is asked for the others alone; CASE keeps that order.
        """
        return [
            value
            if is_harmless(key.expression) or not self.tree.where
            else case((and_(true(), *self._where()), value))
            for key in self.keys
            for value in [placed(key.expression, self.sources)]
        ]

    def all_rows(self) -> Select[Any]:
        """Return the query for all that is stored."""
        return self.rows_where()

    def rows_where(self, *restrictions: ColumnElement[bool]) -> Select[Any]:
        """Return the query for what is stored, of the joined rows that meet ``restrictions``.

        They stand below its GROUP BY: a condition around it would compute every group first.
        """
        hidden = [key.expression for key in self.keys if key.shown_by is None]
        labelled = [
            placed(element, self.sources).label(name)
            for element, name in zip((*self.outputs, *hidden), self.stored_columns, strict=True)
        ]
        return self._select(labelled, restrictions)

    def _select(
        self, labelled: Iterable[Any], restrictions: Iterable[ColumnElement[bool]]
    ) -> Select[Any]:
        query = (
            select(*labelled)
            .select_from(self._from(self.tree.root))
            .where(true(), *self._where(), *restrictions)
            # Bare, a function would be taken for something to select from.
            .group_by(*(Grouping(placed(group, self.sources)) for group in self.groups))
            .having(*(placed(part, self.sources) for part in self.having))
        )
        return query.distinct() if self.distinct else query

    def _where(self) -> list[Any]:
        return [placed(condition.expression, self.sources) for condition in self.tree.where]

    def _from(self, node: Node) -> FromClause:
        if isinstance(node, int):
            return self.sources[node]
        on = [placed(condition.expression, self.sources) for condition in node.on]
        return join(
            self._from(node.left),
            self._from(node.right),
            and_(true(), *on),
            isouter=node.kind is not JoinKind.INNER,
            full=node.kind is JoinKind.FULL,
        )


def _conditions(node: Node) -> Iterable[Any]:
    if isinstance(node, Joined):
        yield from node.on
        yield from _conditions(node.left)
        yield from _conditions(node.right)
