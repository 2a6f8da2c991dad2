"""Where the rows of a query come from: tables, joins of them, and subqueries that only pass on.

A subquery of plain rows is taken apart, so that the changes of its tables can be followed; one
that is a UNION ALL makes a branch of each of its queries. What is taken apart gets an alias of
its own, since the same table may stand outside, too.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    CTE,
    Alias,
    Column,
    ColumnElement,
    FromClause,
    Integer,
    Join,
    Label,
    Subquery,
    Table,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql.sqltypes import NullType
from sqlalchemy.sql.visitors import iterate, replacement_traverse

DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]  # SQLAlchemy's own is untyped

_VALUE_NAME = re.compile(r"%\(\w+\)s|__\[POSTCOMPILE_\w+\]")

ReadRows: TypeAlias = Callable[[Any], "list[Rows]"]


class NotCountableError(Exception):
    """A clause that counting cannot follow; its text says which."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of joined tables that meet conditions.

    Attributes:
        sources: The tables.
        conditions: The conditions.
        columns: What of them a query selects, in order.
    """

    sources: tuple[FromClause, ...] = ()
    conditions: tuple[ColumnElement[Any], ...] = ()
    columns: tuple[ColumnElement[Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Joined:
    """Rows, and what the columns of the subqueries among them stand for.

    Attributes:
        rows: The rows.
        meanings: What each subquery that was taken apart selects.
    """

    rows: Rows
    meanings: tuple[tuple[FromClause, dict[str, ColumnElement[Any]]], ...] = ()

    def meaning(self, expression: Any) -> Any:  # noqa: ANN401 -- whatever a query names
        """Return ``expression`` said of tables only."""

        def replace(element: Any, **_: Any) -> Any:  # noqa: ANN401
            if not isinstance(getattr(element, "table", None), FromClause):
                return None
            for subquery, columns in self.meanings:
                if is_same_source(subquery, element.table) and element.key in columns:
                    return columns[element.key]
            return None

        meant = plain(expression)
        return replacement_traverse(meant, {}, replace) if self.meanings else meant


def join_sources(sources: Iterable[Any], read_rows: ReadRows) -> list[Joined]:
    """Return the rows that a FROM clause gives, once for each branch of its subqueries.

    Raises:
        NotCountableError: One of the sources is more than tables and inner joins.
    """
    found = [Joined(Rows())]
    for source in sources:
        found = [_both(left, right) for left in found for right in _joined(source, read_rows)]
    return found


def table_of(source: Any) -> Table:  # noqa: ANN401 -- whatever a query names
    """Return the table behind a source; only tables and their aliases get this far."""
    bare = plain_source(source)
    table = plain_source(bare.element) if isinstance(bare, Alias) else bare
    if not isinstance(table, Table):
        raise NotCountableError(f"{shown(source)} is not a table")
    return table


def own_source(part: Any, sources: Iterable[FromClause]) -> FromClause | None:  # noqa: ANN401
    """Return the one of ``sources`` whose column ``part`` is, if it is a column of one.

    Taking an expression apart copies the aliases in it; a copy still has the alias's name.
    """
    if not isinstance(part, Column):
        return None
    return next((source for source in sources if is_same_source(source, part.table)), None)


def is_same_source(source: FromClause, other: Any) -> bool:  # noqa: ANN401
    """Return whether both are the same occurrence of a table or subquery."""
    if isinstance(source, Alias) and isinstance(other, Alias):
        return source.name == other.name and table_of(source) is table_of(other)
    if isinstance(source, Subquery | CTE) and type(source) is type(other):
        return bool(source.name == other.name)
    return source is other


def are_the_same(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Return whether two expressions say the same of the same sources."""
    columns, others = (
        [part for part in iterate(each) if isinstance(part, Column)] for each in (one, other)
    )
    written, rewritten = (each.compile(dialect=DIALECT) for each in (one, other))
    return (
        without_value_names(str(written)) == without_value_names(str(rewritten))
        and [*written.params.values()] == [*rewritten.params.values()]
        # Nameless aliases are called the same in each text.
        and all(is_same_source(a.table, b.table) for a, b in zip(columns, others, strict=True))
    )


def without_value_names(written: str) -> str:
    """Return SQL without the names of values, which differ from copy to copy."""
    return _VALUE_NAME.sub("?", written)


def unlabelled(element: Any) -> Any:  # noqa: ANN401
    """Return what a label is on."""
    bare = plain(element)
    return unlabelled(bare.element) if isinstance(bare, Label) else bare


def plain_source(source: Any) -> Any:  # noqa: ANN401
    """Return a table, join or subquery as Core has it; a subquery's inside is left alone."""
    if not isinstance(source, Join):
        return source._deannotate()  # noqa: SLF001 -- what the deep one calls, see plain()
    left, right = plain_source(source.left), plain_source(source.right)
    on = None if source.onclause is None else plain(source.onclause)
    return Join(left, right, on, isouter=source.isouter, full=source.full)


def plain(element: Any) -> Any:  # noqa: ANN401
    """Return an expression as Core has it, without what the ORM wrote on it."""
    found: dict[Any, Any] = {}

    # As SQLAlchemy's own _deep_deannotate, which fails at a SELECT whose columns were chosen anew
    # after a join: what it remembers of the former ones carries no annotations to take off.
    def bare(part: Any, **_: Any) -> Any:  # noqa: ANN401
        if part not in found:
            if not hasattr(part, "_deannotate"):
                return part
            found[part] = part._deannotate(clone=True)  # noqa: SLF001
            found[part]._copy_internals(clone=bare, _annotations_traversal=True)  # noqa: SLF001
        return found[part]

    return bare(element)


def shown(element: Any) -> str:  # noqa: ANN401
    """Return ``element`` for people."""
    return str(element.compile(dialect=DIALECT))


def _joined(source: FromClause, read_rows: ReadRows) -> Iterator[Joined]:
    bare = plain_source(source)
    if isinstance(bare, Subquery | CTE):
        if isinstance(bare, CTE) and bare.recursive:
            raise NotCountableError(f"{bare.name} is recursive")
        yield from _taken_apart(bare, read_rows(bare.element))
        return
    if not isinstance(bare, Join):
        table_of(bare)
        yield Joined(Rows((bare,)))
        return
    if bare.isouter or bare.full:
        raise NotCountableError("an outer join adds and removes rows that no change names")
    for left in _joined(bare.left, read_rows):
        for right in _joined(bare.right, read_rows):
            both = _both(left, right)
            on = () if bare.onclause is None else (both.meaning(bare.onclause),)
            rows = Rows(both.rows.sources, (*both.rows.conditions, *on))
            yield Joined(rows, both.meanings)


def _taken_apart(subquery: Subquery | CTE, branches: list[Rows]) -> Iterator[Joined]:
    for rows in branches:
        if any(
            not _are_alike(*both) for both in zip(rows.columns, branches[0].columns, strict=True)
        ):
            raise NotCountableError(f"the SELECTs of {subquery.name} have columns of several types")
        renamed = _renamed(rows)
        columns = dict(zip(subquery.c.keys(), renamed.columns, strict=True))
        yield Joined(Rows(renamed.sources, renamed.conditions), ((subquery, columns),))


def _are_alike(column: ColumnElement[Any], other: ColumnElement[Any]) -> bool:
    """Return whether a UNION leaves values of both as they are, so that what follows can, too."""
    integers = isinstance(column.type, Integer) and isinstance(other.type, Integer)
    return integers or type(column.type) is type(other.type) is not NullType or column is other


def _both(left: Joined, right: Joined) -> Joined:
    rows = Rows(
        (*left.rows.sources, *right.rows.sources), (*left.rows.conditions, *right.rows.conditions)
    )
    return Joined(rows, (*left.meanings, *right.meanings))


def _renamed(rows: Rows) -> Rows:
    aliases = [(source, table_of(source).alias()) for source in rows.sources]

    def replace(element: Any, **_: Any) -> Any:  # noqa: ANN401
        own = own_source(element, rows.sources)
        return next((alias.c[element.key] for source, alias in aliases if source is own), None)

    def place(expression: Any) -> Any:  # noqa: ANN401
        return replacement_traverse(expression, {}, replace)

    return Rows(
        tuple(alias for _, alias in aliases),
        tuple(place(condition) for condition in rows.conditions),
        tuple(place(column) for column in rows.columns),
    )
