"""Read a select: can it be kept by counting, and if so, what has to be counted?

Counting adds, for each changed row, what it brings or takes away. That is exact for inner joins,
filters and groups, with counts and with sums of exact numbers; for nothing else. What this module
does not recognise is not counted, so that a clause it has never heard of costs time, not truth.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, TypeAlias

from sqlalchemy import (
    Alias,
    BindParameter,
    Column,
    ColumnElement,
    CompoundSelect,
    FromClause,
    FunctionElement,
    Integer,
    Join,
    Label,
    Null,
    Numeric,
    Select,
    Table,
    UnaryExpression,
    select,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BooleanClauseList,
    ExpressionClauseList,
    False_,
    Grouping,
    True_,
)
from sqlalchemy.sql.util import _deep_deannotate
from sqlalchemy.sql.visitors import iterate

AnySelect: TypeAlias = Select[*tuple[Any, ...]]
Query: TypeAlias = AnySelect | CompoundSelect[*tuple[Any, ...]]

DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]  # SQLAlchemy's own is untyped


class NotCountableError(Exception):
    """A clause that counting cannot follow; its text says which."""


class OutputKind(StrEnum):
    """What a column of the view shows."""

    KEY = "key"
    ROWS = "rows"
    COUNT = "count"
    SUM = "sum"
    AVG = "avg"


@dataclass(frozen=True, slots=True)
class Output:
    """A column of the view: its kind, and which key or measure it shows."""

    kind: OutputKind
    index: int = 0


@dataclass(frozen=True, slots=True)
class CountingPlan:
    """What a countable query is made of.

    Attributes:
        sources: The tables, each as often as it occurs.
        conditions: What must hold of a row of all of them.
        keys: What rows are grouped by.
        measures: What is counted or summed.
        outputs: What the columns of the view show, in order.
    """

    sources: tuple[FromClause, ...]
    conditions: tuple[ColumnElement[Any], ...]
    keys: tuple[Column[Any], ...]
    measures: tuple[Column[Any], ...]
    outputs: tuple[Output, ...]

    def columns_of(self, table: Table) -> list[Column[Any]]:
        """Return the columns of ``table`` that matter, in the table's order."""
        named = {
            column.key
            for part in (*self.conditions, *self.keys, *self.measures)
            for column in iterate(part)
            if isinstance(column, Column) and table_of(column.table) is table
        }
        return [column for column in table.columns if column.key in named]

    @property
    def compares_local_times(self) -> bool:
        """Whether a condition has a date or time without a zone in it."""
        bound = (p for c in self.conditions for p in iterate(c) if isinstance(p, BindParameter))
        values = (v for p in bound for v in (p.value or () if p.expanding else (p.value,)))
        return any(
            isinstance(v, date) and (not isinstance(v, datetime) or v.tzinfo is None)
            for v in values
        )

    @property
    def tables(self) -> list[Table]:
        """Return each table once."""
        return list(dict.fromkeys(table_of(source) for source in self.sources))


_OPERATORS = frozenset({
    operators.eq, operators.ne, operators.lt, operators.le, operators.gt, operators.ge,
    operators.is_, operators.is_not, operators.in_op, operators.not_in_op,
    operators.is_distinct_from, operators.is_not_distinct_from,
    operators.between_op, operators.not_between_op, operators.and_, operators.or_,
    operators.comma_op, operators.inv, operators.is_true, operators.is_false,
})  # fmt: skip
_TOTAL = (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ExpressionClauseList,
    False_,
    Grouping,
    Null,
    True_,
    UnaryExpression,
)


def table_of(source: Any) -> Table:  # noqa: ANN401 -- whatever a query names
    """Return the table behind a source; only tables and their aliases get this far."""
    plain = _plain(source)
    table = _plain(plain.element) if isinstance(plain, Alias) else plain
    if not isinstance(table, Table):
        raise NotCountableError(f"{_shown(source)} is not a table")
    return table


def read_plan(query: Query) -> CountingPlan:
    """Return what has to be counted to keep ``query``.

    Raises:
        NotCountableError: Some clause of it cannot be followed by counting.
    """
    if not isinstance(query, Select):
        raise NotCountableError("it combines several SELECTs")
    sources: list[FromClause] = []
    conditions: list[ColumnElement[Any]] = []
    for source in query.get_final_froms():
        for part in _flattened(source):
            if isinstance(part, FromClause):
                sources.append(part)
            else:
                conditions.append(part)
    if query.whereclause is not None:
        conditions.append(_plain(query.whereclause))
    groups = [*query._group_by_clauses]  # noqa: SLF001 -- there is no public list of them
    keys = [_key(group, sources) for group in groups]
    _require_nothing_else(query, groups)
    for condition in conditions:
        _require_total(condition, sources)
    measures: list[Column[Any]] = []
    outputs = tuple(_output(c, keys, measures, sources) for c in query.selected_columns)
    if not keys and not any(output.kind != OutputKind.KEY for output in outputs):
        raise NotCountableError("it does not group rows")
    plan = CountingPlan(tuple(sources), tuple(conditions), tuple(keys), tuple(measures), outputs)
    _require_selected_as_stored(plan)
    return plan


def own_source(part: Any, sources: Iterable[FromClause]) -> FromClause | None:  # noqa: ANN401
    """Return the one of ``sources`` whose column ``part`` is, if it is a column of one.

    Taking an expression apart copies the aliases in it; a copy still has the alias's name.
    """
    if not isinstance(part, Column):
        return None
    return next((source for source in sources if _is_same(source, part.table)), None)


def _own_column(part: Any, sources: Iterable[FromClause]) -> Column[Any] | None:  # noqa: ANN401
    source = own_source(part, sources)
    return None if source is None else source.c[part.key]


def _is_same(source: FromClause, other: Any) -> bool:  # noqa: ANN401
    if isinstance(source, Alias) and isinstance(other, Alias):
        return source.name == other.name and table_of(source) is table_of(other)
    return source is other


def _flattened(source: FromClause) -> Iterator[FromClause | ColumnElement[Any]]:
    plain = _plain(source)
    if not isinstance(plain, Join):
        table_of(plain)
        yield plain
        return
    if plain.isouter or plain.full:
        raise NotCountableError("an outer join adds and removes rows that no change names")
    yield from _flattened(plain.left)
    yield from _flattened(plain.right)
    if plain.onclause is not None:
        yield _plain(plain.onclause)


def _key(group: ColumnElement[Any], sources: list[FromClause]) -> Column[Any]:
    plain = _unlabelled(group)
    if (key := _own_column(plain, sources)) is None:
        raise NotCountableError(f"GROUP BY {_shown(plain)} is not a column")
    return key


def _output(
    column: ColumnElement[Any],
    keys: list[Column[Any]],
    measures: list[Column[Any]],
    sources: list[FromClause],
) -> Output:
    plain = _unlabelled(column)
    if isinstance(plain, Column):
        key = _own_column(plain, sources)
        if key is None or key not in _Identities(keys):
            raise NotCountableError(f"{_shown(plain)} is not grouped")
        return Output(OutputKind.KEY, _Identities(keys).index(key))
    kind, argument = _aggregate(plain)
    if argument is None:
        return Output(kind)
    if (measure := _own_column(argument, sources)) is None:
        raise NotCountableError(f"{_shown(plain)} does not aggregate a column")
    _require_exact(kind, measure)
    if measure not in _Identities(measures):
        measures.append(measure)
    return Output(kind, _Identities(measures).index(measure))


def _aggregate(element: ColumnElement[Any]) -> tuple[OutputKind, Any]:
    if not isinstance(element, FunctionElement) or getattr(element, "packagenames", None):
        raise NotCountableError(f"{_shown(element)} is neither a column nor a plain aggregate")
    name, arguments = element.name.lower(), [*element.clauses]
    named = next((getattr(a, "name", None) for a in arguments if not isinstance(a, Column)), None)
    if name == "count" and (not arguments or named == "*"):
        return OutputKind.ROWS, None
    if name not in {"count", "sum", "avg"} or len(arguments) != 1:
        raise NotCountableError(f"{_shown(element)} cannot be counted; count, sum and avg can")
    return OutputKind(name), _plain(arguments[0])


def _require_exact(kind: OutputKind, measure: Column[Any]) -> None:
    exact = {OutputKind.SUM: (Integer, Numeric), OutputKind.AVG: (Integer,)}.get(kind)
    if exact is not None and not isinstance(measure.type, exact):
        raise NotCountableError(f"{kind}({_shown(measure)}) is not exact for {measure.type!r}")


def _require_total(condition: ColumnElement[Any], sources: list[FromClause]) -> None:
    """Let only through what no combination of values makes fail.

    Counting evaluates conditions on rows that never were together; a division would raise there
    while the query itself is fine.
    """
    for part in iterate(condition):
        known = isinstance(part, _TOTAL) or own_source(part, sources) is not None
        operator = getattr(part, "operator", None)
        if not known or (operator is not None and operator not in _OPERATORS):
            raise NotCountableError(f"{_shown(condition)} is more than a comparison of columns")


def _require_nothing_else(query: AnySelect, groups: list[ColumnElement[Any]]) -> None:
    # Of plain parts: the ORM adds conditions of its own, as for inheritance in a single table.
    rebuilt = select(*map(_plain, query.selected_columns))
    rebuilt = rebuilt.select_from(*map(_plain, query.get_final_froms()))
    if query.whereclause is not None:
        rebuilt = rebuilt.where(_plain(query.whereclause))
    if _shown(rebuilt.group_by(*map(_plain, groups))) != _shown(query):
        raise NotCountableError("it has clauses beyond SELECT, FROM, WHERE and GROUP BY")


def _require_selected_as_stored(plan: CountingPlan) -> None:
    for column in (column for table in plan.tables for column in plan.columns_of(table)):
        if column.type.column_expression(column) is not None:
            raise NotCountableError(f"{_shown(column)} is not selected as it is stored")


def _unlabelled(element: Any) -> Any:  # noqa: ANN401
    plain = _plain(element)
    return _unlabelled(plain.element) if isinstance(plain, Label) else plain


def _plain(element: Any) -> Any:  # noqa: ANN401
    """Return ``element`` as Core has it, without what the ORM wrote on it."""
    return _deep_deannotate(element)


def _shown(element: Any) -> str:  # noqa: ANN401
    return str(element.compile(dialect=DIALECT))


class _Identities(list[Any]):
    """A list that looks for the same object; ``==`` of columns is SQL."""

    def __contains__(self, wanted: object) -> bool:
        return any(element is wanted for element in self)

    def index(self, wanted: object, *_: Any) -> int:  # noqa: ANN401
        return next(i for i, element in enumerate(self) if element is wanted)
