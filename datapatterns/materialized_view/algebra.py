"""Read a select: can it be kept by counting, and if so, what has to be counted?

Counting adds, for each changed row, what it brings or takes away. That is exact for inner joins,
filters, UNION ALL and groups, with counts and with sums of exact numbers; for nothing else. What
this module does not recognise is not counted, so that a clause it has never heard of costs time,
not truth.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    CompoundSelect,
    FunctionElement,
    Null,
    Select,
    select,
)
from sqlalchemy.sql.elements import ClauseList, _label_reference
from sqlalchemy.sql.selectable import SelectStatementGrouping, _CompoundSelectKeyword

from datapatterns.materialized_view.aggregates import AggregateReader, is_aggregate
from datapatterns.materialized_view.counting_plan import (
    Branch,
    CountingPlan,
    Output,
    OutputKind,
    Shape,
)
from datapatterns.materialized_view.sources import (
    Joined,
    NotCountableError,
    Rows,
    are_the_same,
    join_sources,
    plain,
    plain_source,
    shown,
    unlabelled,
    without_value_names,
)
from datapatterns.materialized_view.totality import totally

AnySelect: TypeAlias = Select[*tuple[Any, ...]]
Query: TypeAlias = AnySelect | CompoundSelect[*tuple[Any, ...]]


def read_plan(query: Query) -> CountingPlan:
    """Return what has to be counted to keep ``query``.

    Raises:
        NotCountableError: Some clause of it cannot be followed by counting.
    """
    plan = _read_groups(query) if _is_grouped(query) else _read_plain(query)
    if not plan.tables:
        raise NotCountableError("it reads no table")
    _require_selected_as_stored(plan)
    return plan


def _is_grouped(query: Query) -> bool:
    return isinstance(query, Select) and (
        bool(query._group_by_clauses)  # noqa: SLF001 -- there is no public list of them
        or any(is_aggregate(unlabelled(column)) for column in query.selected_columns)
    )


def _read_plain(query: Query) -> CountingPlan:
    is_distinct = _removes_duplicates(query)
    found = _read_rows(query, is_distinct=is_distinct)
    branches = tuple(
        Branch(
            rows.sources,
            _all_totally(rows.conditions, rows),
            _all_totally(rows.columns, rows),
        )
        for rows in found
    )
    outputs = tuple(Output(OutputKind.KEY, index) for index in range(len(branches[0].keys)))
    return CountingPlan(Shape.DISTINCT if is_distinct else Shape.ROWS, branches, (), outputs)


def _read_groups(query: Query) -> CountingPlan:
    assert isinstance(query, Select)
    clauses = [plain(clause) for clause in query._group_by_clauses]  # noqa: SLF001
    _require_nothing_else(query, clauses)
    groups = [_group(clause) for clause in clauses]
    reader = AggregateReader()
    outputs = tuple(
        _output(unlabelled(column), groups, reader) for column in query.selected_columns
    )
    branches = []
    for joined in _joined(query, is_distinct=False):
        rows, where = joined.rows, _where(query, joined)
        branches.append(
            Branch(
                rows.sources,
                _all_totally([*rows.conditions, *where], rows),
                _all_totally(map(joined.meaning, groups), rows),
                _all_totally((joined.meaning(m.counted) for m in reader.found), rows),
                _all_totally((joined.meaning(m.value) for m in reader.found), rows),
            )
        )
    measures = tuple(reader.measure(i, branches) for i in range(len(reader.found)))
    return CountingPlan(Shape.GROUPS, tuple(branches), measures, outputs)


def _read_rows(query: Any, *, is_distinct: bool) -> list[Rows]:  # noqa: ANN401 -- any subquery
    """Return the rows of a query that neither groups nor, if it matters, drops duplicates."""
    if isinstance(query, SelectStatementGrouping):
        return _read_rows(query.element, is_distinct=is_distinct)
    if isinstance(query, CompoundSelect):
        return _read_union(query, is_distinct=is_distinct)
    if not isinstance(query, Select):
        raise NotCountableError(f"{shown(query)} is not a SELECT")
    if _is_grouped(query):
        raise NotCountableError("a subquery groups rows")
    if query._distinct and not is_distinct:  # noqa: SLF001 -- as above
        raise NotCountableError("a subquery drops duplicates, which counts of others depend on")
    _require_nothing_else(query, [])
    selected = [*map(unlabelled, query.selected_columns)]
    return [
        Rows(
            joined.rows.sources,
            (*joined.rows.conditions, *_where(query, joined)),
            tuple(map(joined.meaning, selected)),
        )
        for joined in _joined(query, is_distinct=is_distinct)
    ]


def _read_union(query: CompoundSelect[Any], *, is_distinct: bool) -> list[Rows]:
    merging = {_CompoundSelectKeyword.UNION_ALL} | (
        {_CompoundSelectKeyword.UNION} if is_distinct else set()
    )
    if query.keyword not in merging:
        raise NotCountableError(f"{query.keyword.value} of several SELECTs looks at other rows")
    if skeleton(CompoundSelect(query.keyword, *query.selects)) != skeleton(query):
        raise NotCountableError("it has clauses beyond its SELECTs")
    return [rows for part in query.selects for rows in _read_rows(part, is_distinct=is_distinct)]


def _removes_duplicates(query: Query) -> bool:
    if isinstance(query, CompoundSelect):
        return query.keyword is _CompoundSelectKeyword.UNION
    return bool(query._distinct)  # noqa: SLF001 -- as above


def _joined(query: AnySelect, *, is_distinct: bool) -> list[Joined]:
    read_rows = partial(_read_rows, is_distinct=is_distinct)
    return join_sources(query.get_final_froms(), read_rows)


def _where(query: AnySelect, joined: Joined) -> list[ColumnElement[Any]]:
    return [] if query.whereclause is None else [joined.meaning(query.whereclause)]


def _all_totally(
    expressions: Iterable[ColumnElement[Any]], rows: Rows
) -> tuple[ColumnElement[Any], ...]:
    return tuple(totally(expression, rows.sources) for expression in expressions)


def _group(clause: Any) -> ColumnElement[Any]:  # noqa: ANN401 -- whatever was grouped by
    named = clause.element if isinstance(clause, _label_reference) else clause
    if isinstance(named, ClauseList) and len(named.clauses) == 1:  # around a function
        return _group(named.clauses[0])
    group = unlabelled(named)
    if not isinstance(group, ColumnElement | FunctionElement) or isinstance(
        group, BindParameter | Null
    ):
        raise NotCountableError(f"GROUP BY {shown(clause)} is neither column nor expression")
    return group


def _output(
    column: Any,  # noqa: ANN401 -- whatever was selected
    groups: list[ColumnElement[Any]],
    reader: AggregateReader,
) -> Output:
    for index, group in enumerate(groups):
        if are_the_same(column, group):
            return Output(OutputKind.KEY, index)
    if not is_aggregate(column):
        raise NotCountableError(f"{shown(column)} is not grouped, nor an aggregate to count")
    return reader.read(column)


def _require_nothing_else(query: AnySelect, groups: list[ColumnElement[Any]]) -> None:
    # Of plain parts: the ORM adds conditions of its own, as for inheritance in a single table.
    rebuilt = select(*map(plain, query.selected_columns))
    rebuilt = rebuilt.select_from(*map(plain_source, query.get_final_froms()))
    if query.whereclause is not None:
        rebuilt = rebuilt.where(plain(query.whereclause))
    if query._distinct and not groups:  # noqa: SLF001 -- as above
        rebuilt = rebuilt.distinct()
    if query._distinct_on or skeleton(rebuilt.group_by(*groups)) != skeleton(query):  # noqa: SLF001
        raise NotCountableError("it has clauses beyond SELECT, FROM, WHERE and GROUP BY")


def skeleton(query: Query) -> str:
    """Return the query as SQL, without the names of values, which differ from copy to copy."""
    return without_value_names(shown(query))


def _require_selected_as_stored(plan: CountingPlan) -> None:
    for column in (column for table in plan.tables for column in plan.columns_of(table)):
        if column.type.column_expression(column) is not None:
            raise NotCountableError(f"{shown(column)} is not selected as it is stored")
