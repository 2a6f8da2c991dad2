"""Split a SELECT into what each shard computes and how the answers are merged."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Numeric, Select, func
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import MergeLimitError, UnmergeableQueryError
from datapatterns.sharding.routing.footprint import Footprint
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.scatter.bounds import bounds_of
from datapatterns.sharding.scatter.combine_plan import combine
from datapatterns.sharding.scatter.mergeable import (
    AggregateCall,
    SortExpression,
    aggregate_call,
    check_identity,
    check_parts_in_python,
    order_key,
    position_of,
    sort_expression,
)
from datapatterns.sharding.scatter.merging import Aggregate
from datapatterns.sharding.scatter.ordering import OrderKey
from datapatterns.sharding.scatter.ranking import RankedColumn, ranked_column
from datapatterns.sharding.scatter.refusals import refuse_what_nobody_merges
from datapatterns.sharding.scatter.selected import (
    AnySelect,
    aggregates_in,
    clauses_of,
    distinct_on_of,
    groups_of,
    selected_columns,
    selects_only_columns,
    unlabelled,
    windows_in,
)

OFFSET_MAX = 10_000
"""How deep a page over several shards may lie: each shard must send all rows before it."""

_ANY_NUMBER = 2**62


@dataclass(frozen=True, slots=True)
class GroupMerge:
    """How partial aggregates become the rows that the caller selected.

    Attributes:
        group_by: Where the columns stand that tell groups apart, in the partial rows.
        aggregates: Where partial aggregates stand there.
        averages: Sums among them, with the counts that they are to be divided by.
        output: Where the caller's columns stand there; an average where its sum does.
    """

    group_by: tuple[int, ...]
    aggregates: tuple[tuple[int, Aggregate], ...]
    averages: tuple[tuple[int, int], ...]
    output: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScatterPlan:
    """What to send to each shard, and what to do with the answers.

    Attributes:
        statement: The same for each shard, but for the guard that is added.
        width: How many columns the caller gets.
        groups: How to merge partial aggregates; None for plain rows.
        order: What to order the merged rows by.
        ranked: Which columns of that PostgreSQL has to compare.
        leading: Of rows that agree in so many parts of the order, the first is kept.
        distinct: Whether repeated rows are dropped.
        offset: How many merged rows to skip.
        limit: How many to return at most; None for all.
        rows_max: How many rows may be merged.
        streamed: Whether rows can be merged while they come, however many.
        combined: What PostgreSQL is to make of the answers, if that is beyond Python.
        reason: What is beyond Python.
    """

    statement: AnySelect
    width: int
    groups: GroupMerge | None
    order: tuple[OrderKey, ...]
    distinct: bool
    offset: int
    limit: int | None
    rows_max: int
    ranked: tuple[RankedColumn, ...] = ()
    leading: int = 0
    streamed: bool = False
    combined: AnySelect | None = None
    reason: str | None = None


def refuse_other_shapes(statement: SelectBase, footprint: Footprint) -> AnySelect:
    """Return a statement for several shards that is one SELECT of rows that lie together.

    Raises:
        UnmergeableQueryError: It is something else.
    """
    if not isinstance(statement, Select) or not footprint.plain:
        raise UnmergeableQueryError("a UNION or subquery", "let each SELECT name one shard key")
    if not footprint.blocks[0].tied:
        raise UnmergeableQueryError(
            "a join that does not compare the shard keys",
            "add the comparison to its ON, or let each table name the key",
        )
    return statement


def plan_scatter(
    statement: AnySelect,
    footprint: Footprint,
    parameters: Parameters,
    *,
    rows_max: int,
    streaming: bool = False,
) -> ScatterPlan:
    """Return how to answer ``statement`` from several shards.

    Args:
        statement: What is asked.
        footprint: What it reads.
        parameters: The values that the caller passed beside it.
        rows_max: How many rows may be merged in memory.
        streaming: Whether rows may be merged while they come, without end.

    Raises:
        MergeLimitError: It asks for more rows than may be merged.
        UnmergeableQueryError: The shards' answers cannot be merged exactly.
    """
    if streaming:
        plan = plan_scatter(statement, footprint, parameters, rows_max=_ANY_NUMBER)
        in_parts = plan.groups is None and plan.combined is None and not plan.ranked
        if in_parts and not plan.distinct and not plan.leading:
            sent = plan.statement if plan.limit is not None else plan.statement.limit(None)
            return replace(plan, statement=sent, streamed=True)
    (block,) = footprint.blocks
    if block.keeping:
        raise UnmergeableQueryError(
            "an outer join that keeps the rows of a broadcast table",
            "turn it round, so that it keeps the sharded rows, or name the shard key",
        )
    keys = [leaf for leaf in block.leaves if not block.outer]
    group_by = groups_of(statement)

    def holds_key(clauses: Iterable[ClauseElement]) -> bool:
        plain = [unlabelled(clause) for clause in clauses]
        return any(leaf.has_key(plain) for leaf in keys)

    windows = windows_in(statement)
    whole_groups = holds_key(group_by)
    # A shard can finish a window function if it has all rows of each partition.
    whole_windows = all(holds_key(clauses_of(window.partition_by)) for window in windows)
    aggregated = bool(group_by or statement._having_criteria) or any(  # noqa: SLF001
        map(aggregates_in, _results(statement))
    )
    finished = whole_windows and (whole_groups or not aggregated)
    refuse_what_nobody_merges(statement, whole_groups=finished)
    bounds = _bounds(statement, parameters, rows_max)
    try:
        if finished:
            return _plan_rows(statement, bounds)
        check_parts_in_python(statement)
        return _plan_groups(statement, group_by, bounds)
    except UnmergeableQueryError as refusal:
        if not selects_only_columns(statement):
            raise
        return _plan_combined(statement, group_by, bounds, refusal, aggregated=aggregated)


def _results(statement: AnySelect) -> Iterator[ClauseElement]:
    yield from selected_columns(statement)
    yield from statement._having_criteria  # noqa: SLF001 -- there is no public name
    yield from statement._order_by_clauses  # noqa: SLF001 -- nor for this


@dataclass(frozen=True, slots=True)
class _Bounds:
    offset: int
    limit: int | None
    rows_max: int

    @property
    def sent(self) -> int:
        # One row more than may be merged tells that there are too many.
        return self.rows_max + 1 if self.limit is None else self.limit + self.offset


def _bounds(statement: AnySelect, parameters: Parameters, rows_max: int) -> _Bounds:
    limit, offset = bounds_of(statement, parameters)
    offset = offset or 0
    if offset > OFFSET_MAX:
        raise UnmergeableQueryError(
            f"OFFSET {offset}", "read pages by keyset(statement, by=..., after=cursor, size=...)"
        )
    if limit is not None and limit + offset > rows_max:
        raise MergeLimitError(rows_max)
    return _Bounds(offset, limit, rows_max)


def _plan_combined(
    statement: AnySelect,
    group_by: Sequence[ColumnElement[Any]],
    bounds: _Bounds,
    refusal: UnmergeableQueryError,
    *,
    aggregated: bool,
) -> ScatterPlan:
    """PostgreSQL finishes what Python cannot."""
    partial, combined = combine(statement, group_by, aggregated=aggregated)
    return ScatterPlan(
        partial.limit(bounds.rows_max + 1),
        len(selected_columns(statement)),
        None,
        (),
        False,
        bounds.offset,
        bounds.limit,
        bounds.rows_max,
        combined=combined.limit(bounds.limit).offset(bounds.offset or None),
        reason=refusal.clause,
    )


def _plan_rows(statement: AnySelect, bounds: _Bounds) -> ScatterPlan:
    """Each group, or each row, is on one shard: what it answers is part of the answer."""
    selected = selected_columns(statement)
    first_of = distinct_on_of(statement)
    distinct = bool(statement._distinct) and not first_of  # noqa: SLF001 -- no public name
    if distinct:
        for column in selected:
            check_identity(column, "DISTINCT")
    width = len(statement.column_descriptions)
    # What is selected need not be sent twice. An entity is one of the caller's columns, and many.
    one_by_one = selects_only_columns(statement) and len(selected) == width
    sorts = [sort_expression(clause) for clause in statement._order_by_clauses]  # noqa: SLF001
    _check_first_of(first_of, [_named(sort, selected) for sort in sorts[: len(first_of)]])
    order, hidden, ranked = [], [], []
    for sort in sorts:
        position = position_of(sort, selected) if distinct or one_by_one else None
        if distinct and position is None:
            raise UnmergeableQueryError("ORDER BY beside DISTINCT", "select what it orders by")
        if position is None:
            hidden.append(_named(sort, selected).label(None))
            position = width + len(hidden) - 1
        expression = _named(sort, selected)
        order.append(key := order_key(sort, expression, position))
        if key.ranked:
            ranked.append(ranked_column(statement, expression, position))
    sent = statement.add_columns(*hidden).limit(bounds.sent).offset(None)
    return ScatterPlan(
        sent,
        width,
        None,
        tuple(order),
        distinct,
        bounds.offset,
        bounds.limit,
        bounds.rows_max,
        ranked=tuple(ranked),
        leading=len(first_of),
    )


def _check_first_of(
    first_of: Sequence[ColumnElement[Any]], order: Sequence[ColumnElement[Any]]
) -> None:
    """Refuse a DISTINCT ON whose first rows the ORDER BY does not tell."""
    for clause in first_of:
        if not any(each.compare(unlabelled(clause)) for each in order):
            raise UnmergeableQueryError(
                "DISTINCT ON without its ORDER BY", "begin the ORDER BY with the same columns"
            )


def _plan_groups(
    statement: AnySelect, group_by: Sequence[ColumnElement[Any]], bounds: _Bounds
) -> ScatterPlan:
    """A shard's groups are parts of groups; its first ones need not be among the first."""
    selected = selected_columns(statement)
    if len(selected) != len(statement.column_descriptions):
        raise UnmergeableQueryError("a Bundle of aggregates", "select its columns one by one")
    if statement._distinct:  # noqa: SLF001 -- there is no public name
        raise UnmergeableQueryError("DISTINCT beside aggregates", "leave it out, or GROUP BY more")
    partial = _Partial(group_by)
    output = [partial.add(column) for column in selected]
    for clause in group_by:
        partial.add_group(clause)
    order, ranked = [], []
    for clause in statement._order_by_clauses:  # noqa: SLF001 -- there is no public name
        sort = sort_expression(clause)
        position = position_of(sort, selected)
        if position is None:
            raise UnmergeableQueryError("ORDER BY beside aggregates", "select what it orders by")
        call = aggregate_call(selected[position])
        if call is not None and call.name not in {"min", "max"}:
            order.append(sort.key(position, text=False))
        else:
            ordered_by = selected[position] if call is None else call.argument
            order.append(key := order_key(sort, unlabelled(ordered_by), position))
            if key.ranked:
                ranked.append(ranked_column(statement, unlabelled(ordered_by), position))
    sent = (
        statement.with_only_columns(*partial.columns, maintain_column_froms=True)
        .order_by(None)
        .limit(bounds.rows_max + 1)
        .offset(None)
    )
    merge = GroupMerge(
        tuple(partial.group_positions),
        tuple(partial.aggregates),
        tuple(partial.averages),
        tuple(output),
    )
    return ScatterPlan(
        sent,
        len(selected),
        merge,
        tuple(order),
        False,
        bounds.offset,
        bounds.limit,
        bounds.rows_max,
        ranked=tuple(ranked),
    )


class _Partial:
    """Collects the columns that each shard computes."""

    def __init__(self, group_by: Sequence[ColumnElement[Any]]) -> None:
        self.columns: list[ColumnElement[Any]] = []
        self.group_positions: list[int] = []
        self.aggregates: list[tuple[int, Aggregate]] = []
        self.averages: list[tuple[int, int]] = []
        self._group_by = group_by

    def add(self, column: ColumnElement[Any]) -> int:
        """Add what one selected column needs; return where its result will stand."""
        call = aggregate_call(column)
        if call is not None:
            return self._add_average(call) if call.name == "avg" else self._add(column, call.name)
        if aggregates_in(column):
            raise UnmergeableQueryError(
                "an expression over aggregates", "select the aggregates, and compute from them"
            )
        expression = unlabelled(column)
        if not any(expression.compare(clause) for clause in self._group_by):
            raise UnmergeableQueryError(
                "a column that is not in GROUP BY", "add it there, or take its min()"
            )
        check_identity(expression, "GROUP BY")
        self.group_positions.append(len(self.columns))
        self.columns.append(column)
        return len(self.columns) - 1

    def add_group(self, clause: ColumnElement[Any]) -> None:
        """Add a column that tells groups apart, unless it is selected anyway."""
        known = [self.columns[position] for position in self.group_positions]
        if not any(clause.compare(unlabelled(column)) for column in known):
            check_identity(clause, "GROUP BY")
            self.group_positions.append(len(self.columns))
            self.columns.append(clause.label(None))

    def _add(self, column: ColumnElement[Any], name: Aggregate) -> int:
        self.aggregates.append((len(self.columns), name))
        self.columns.append(column)
        return len(self.columns) - 1

    def _add_average(self, call: AggregateCall) -> int:
        # As numeric, so that it is the dividend that PostgreSQL itself would use.
        total = self._add(call.over(func.sum(call.argument.cast(Numeric))).label(None), "sum")
        count = self._add(call.over(func.count(call.argument)).label(None), "count")
        self.averages.append((total, count))
        return total


def _named(sort: SortExpression, selected: Sequence[ColumnElement[Any]]) -> ColumnElement[Any]:
    if not isinstance(sort.expression, str):
        return sort.expression
    position = position_of(sort, selected)
    if position is None:
        raise UnmergeableQueryError(f"ORDER BY {sort.expression!r}", "order by an expression")
    return unlabelled(selected[position])
