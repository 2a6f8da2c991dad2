"""To which rows of each table a query's own conditions confine it.

A table that a query names is confined if a conjunction beside it demands certain values of its
columns: then no other row can show in the result, come or gone. What stands on the outer side of
a join is not, for there the absence of rows shows, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    Alias,
    BindParameter,
    BooleanClauseList,
    Column,
    CompoundSelect,
    FromClause,
    Join,
    Null,
    Select,
    Subquery,
    Table,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, Grouping
from sqlalchemy.sql.selectable import FromGrouping, SelectBase, SelectStatementGrouping

from datapatterns.cache_aside.tags import is_tagged, names_values


class Demand(NamedTuple):
    """What a condition demands of a column.

    Attributes:
        column: The column.
        value: The key of the bound value; None for NULL.
        is_list: Whether the value is a list of which one is demanded.
    """

    column: Column[Any]
    value: str | None
    is_list: bool


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A table where a query names it.

    Attributes:
        table: The table.
        row: What is demanded of each column of its primary key; empty unless it is of all.
        columns: What is demanded of columns whose values are tags.
    """

    table: Table
    row: tuple[Demand, ...]
    columns: tuple[Demand, ...]

    @property
    def is_confined(self) -> bool:
        """Whether anything is demanded that has a tag."""
        return bool(self.row or self.columns)


def occurrences_in(statement: SelectBase) -> list[Occurrence]:
    """Return the tables that a query names, as far as they can be found in it.

    What it does not find, the server does: see `query_analysis`.
    """
    reader = _Reader()
    reader.read(statement, ())
    return reader.found


@dataclass(slots=True)
class _Reader:
    found: list[Occurrence] = field(default_factory=list)
    # The queries that were read, by what they are without the ORM's notes on them.
    seen: list[object] = field(default_factory=list)

    def read(self, statement: Any, around: tuple[FromClause, ...]) -> None:  # noqa: ANN401
        query = _bare(statement)
        if any(query is each for each in self.seen):
            return
        self.seen.append(query)
        match query:
            case Select():
                self._read_select(query, around)
            case CompoundSelect():
                for each in query.selects:
                    self.read(each, around)
            case SelectStatementGrouping() | Subquery() | CTE():
                self.read(query.element, around)
            case _:
                pass  # the server counts what is not found here

    def _read_select(self, query: Select[*tuple[Any, ...]], around: tuple[FromClause, ...]) -> None:
        conditions = [*_conjuncts(query.whereclause)]
        inner: list[FromClause] = []
        outer: list[FromClause] = []
        for source in query.get_final_froms():
            _sort(source, inner, outer, conditions)
        # What a query around it names, a correlated one only refers to.
        own = [(each, True) for each in inner] + [(each, False) for each in outer]
        own = [each for each in own if not any(_are_same(each[0], other) for other in around)]
        for source, can_be_confined in own:
            table = _table_of(source)
            if table is not None:
                demands = [*_demands(source, conditions)] if can_be_confined else []
                self.found.append(_occurrence(table, demands))
        around = (*around, *(source for source, _ in own))
        for source, _ in own:
            self._read_within(source, around)
        self._read_within(query, around)
        for condition in conditions:
            self._read_within(condition, around)

    def _read_within(self, element: Any, around: tuple[FromClause, ...]) -> None:  # noqa: ANN401
        """Read the queries within ``element``, however deep, but not those within these."""
        if isinstance(element, Subquery | CTE):
            self.read(element, around)
            return
        for child in element.get_children():
            if isinstance(child, SelectBase | Subquery | CTE):
                self.read(child, around)
            else:
                self._read_within(child, around)


def _sort(
    source: Any,  # noqa: ANN401 -- whatever a query names
    inner: list[FromClause],
    outer: list[FromClause],
    conditions: list[Any],
) -> None:
    """Take joins apart: what stands within, what on an outer side, and what must hold."""
    bare = _bare(source)
    while isinstance(bare, FromGrouping):
        bare = _bare(bare.element)
    if not isinstance(bare, Join):
        inner.append(bare)
        return
    if bare.full:
        _sort(bare.left, outer, outer, [])
        _sort(bare.right, outer, outer, [])
        return
    _sort(bare.left, inner, outer, conditions)
    if bare.isouter:
        _sort(bare.right, outer, outer, [])
        return
    _sort(bare.right, inner, outer, conditions)
    conditions.extend(_conjuncts(bare.onclause))


def _conjuncts(condition: Any) -> Iterator[Any]:  # noqa: ANN401
    bare = _bare(condition)
    if isinstance(bare, BooleanClauseList) and bare.operator is operators.and_:
        for clause in bare.clauses:
            yield from _conjuncts(clause)
    elif isinstance(bare, Grouping):
        yield from _conjuncts(bare.element)
    elif bare is not None:
        yield bare


def _demands(source: FromClause, conditions: list[Any]) -> Iterator[Demand]:
    for condition in conditions:
        if not isinstance(condition, BinaryExpression):
            continue
        sides = _bare(condition.left), _bare(condition.right)
        for one, other in (sides, sides[::-1]):
            demand = _demand(one, other, condition)
            if demand is not None and _are_same(one.table, source):
                yield demand
                break


def _demand(column: Any, value: Any, condition: BinaryExpression[Any]) -> Demand | None:  # noqa: ANN401
    own = _column_of(column) if isinstance(column, Column) else None
    if own is None or not names_values(own):
        return None
    if isinstance(value, Null):
        return Demand(own, None, is_list=False) if condition.operator is operators.is_ else None
    # Of another type it may be equal without being what the column names.
    if not isinstance(value, BindParameter) or type(value.type) is not type(own.type):
        return None
    is_list = condition.operator is operators.in_op and value.expanding
    is_one = condition.operator is operators.eq and not value.expanding
    return Demand(own, value.key, is_list=is_list) if is_list or is_one else None


def _occurrence(table: Table, demands: list[Demand]) -> Occurrence:
    by_column = {demand.column: demand for demand in reversed(demands)}
    key = [*table.primary_key]
    row = tuple(by_column[column] for column in key if column in by_column)
    # A list for one of several columns would be a tag for each combination.
    is_whole = len(row) == len(key) > 0 and (len(key) == 1 or not any(d.is_list for d in row))
    columns = tuple(demand for demand in demands if is_tagged(demand.column))
    return Occurrence(table, row if is_whole else (), columns)


def _table_of(source: FromClause) -> Table | None:
    bare = _bare(source.element) if isinstance(source, Alias) else source
    return bare if isinstance(bare, Table) else None


def _column_of(column: Column[Any]) -> Column[Any] | None:
    """Return the column as its table has it; an alias has one of its own."""
    source = _bare(column.table)
    table = None if source is None else _table_of(source)
    found = None if table is None else table.c.get(column.key)
    return found if isinstance(found, Column) else None


def _are_same(one: Any, other: Any) -> bool:  # noqa: ANN401
    one, other = _bare(one), _bare(other)
    if isinstance(one, Alias) and isinstance(other, Alias):
        # Taking a statement apart copies aliases; the copy is called the same.
        return one.name == other.name and _table_of(one) is _table_of(other)
    return one is other


def _bare(element: Any) -> Any:  # noqa: ANN401
    """Return what the ORM has made notes on."""
    return element._deannotate() if hasattr(element, "_deannotate") else element  # noqa: SLF001
