"""Merge what several shards say, asking a server about what only PostgreSQL knows."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

from sqlalchemy import ARRAY, BigInteger, Connection, Numeric, cast, column, func, select

from datapatterns.errors import MergeLimitError
from datapatterns.sharding.scatter.merging import merged_groups, merged_rows
from datapatterns.sharding.scatter.ordering import NO_RANKS, Ranks, first_rows, ordered_rows
from datapatterns.sharding.scatter.ranking import ranks_of
from datapatterns.sharding.scatter.scatter_plan import GroupMerge, ScatterPlan

Judge: TypeAlias = Callable[[], Connection]


def merge(
    plan: ScatterPlan,
    parts: Sequence[Sequence[Sequence[Any]]],
    judge: Judge,
    *,
    plain: Collection[int] = (),
) -> list[Sequence[Any]]:
    """Return the rows that one database would have returned for the whole statement.

    Args:
        plan: What was sent.
        parts: What came back from each shard.
        judge: Gives a connection to ask how many digits an average has, and which text comes first.
        plain: Columns of the parts known to need no look at their values before these are compared.

    Raises:
        MergeLimitError: These are more rows than may be merged.
        UnmergeableQueryError: A value is of a type that Python compares otherwise.
    """
    bounded = plan.limit is not None and plan.groups is None
    if not bounded and sum(map(len, parts)) > plan.rows_max:
        raise MergeLimitError(plan.rows_max)
    if plan.groups is not None:
        grouped = _grouped(plan.groups, parts, judge)
        rows = ordered_rows(grouped, plan.order, _ranks(plan, grouped, judge))
        return _within_bounds(plan, rows)
    ranks = _ranks(plan, [row for part in parts for row in part], judge)
    distinct = plan.width if plan.distinct else None
    rows = merged_rows(parts, order=plan.order, distinct=distinct, ranks=ranks, plain=plain)
    if plan.leading:
        rows = first_rows(rows, plan.order[: plan.leading], ranks)
    rows = _within_bounds(plan, rows)
    if rows and len(rows[0]) == plan.width:
        return rows
    return [row[: plan.width] for row in rows]


def _ranks(plan: ScatterPlan, rows: Sequence[Sequence[Any]], judge: Judge) -> Ranks:
    return ranks_of(plan.ranked, rows, judge()) if plan.ranked else NO_RANKS


def _within_bounds(plan: ScatterPlan, rows: list[Sequence[Any]]) -> list[Sequence[Any]]:
    end = None if plan.limit is None else plan.offset + plan.limit
    return rows[plan.offset : end]


def _grouped(
    groups: GroupMerge, parts: Sequence[Sequence[Sequence[Any]]], judge: Judge
) -> list[Sequence[Any]]:
    rows = merged_groups(
        (row for part in parts for row in part),
        group_by=groups.group_by,
        aggregates=groups.aggregates,
    )
    for total, count in groups.averages:
        quotients = _divided(judge(), [row[total] for row in rows], [row[count] for row in rows])
        for row, quotient in zip(rows, quotients, strict=True):
            row[total] = quotient
    return [[row[position] for position in groups.output] for row in rows]


def _divided(conn: Connection, totals: list[Any], counts: list[Any]) -> list[Any]:
    pairs = func.unnest(cast(totals, ARRAY(Numeric)), cast(counts, ARRAY(BigInteger)))
    pair = pairs.table_valued(
        column("total", Numeric), column("count", BigInteger), with_ordinality="place"
    ).render_derived()
    quotient = pair.c.total / func.nullif(pair.c.count, 0)
    return list(conn.scalars(select(quotient).order_by(pair.c.place)))
