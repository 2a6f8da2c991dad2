"""From what is counted to what a view shows."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Label,
    Select,
    and_,
    case,
    func,
    or_,
    select,
    true,
    union_all,
)

from datapatterns.materialized_view.counting import ODD_NUMBERS, ROWS, key_names
from datapatterns.materialized_view.counting_plan import CountingPlan, Output, OutputKind, Shape


def shown_rows(
    plan: CountingPlan, columns: Sequence[str], counted: FromClause, *where: ColumnElement[bool]
) -> Select[Any]:
    """Return the query for the rows that the view shows of ``counted``.

    Args:
        plan: What is counted.
        columns: What the view shows, by name.
        counted: Keys and totals, by the names of the stored columns.
        where: Which of them.
    """
    rows = counted.c[ROWS]
    shown = [
        _value(plan, output, counted).label(name)
        for output, name in zip(plan.outputs, columns, strict=True)
    ]
    if plan.shape is not Shape.ROWS:
        # Without GROUP BY there is one group, which shows even if it is empty.
        has_rows = [rows != 0] if plan.keys else []
        return select(*shown).select_from(counted).where(*has_rows, *where)
    return _repeated(shown, counted, and_(true(), *where))


def _repeated(
    shown: list[Label[Any]], counted: FromClause, where: ColumnElement[bool]
) -> Select[Any]:
    # Most rows occur once: these are not made to call a function.
    once = select(*shown).select_from(counted).where(counted.c[ROWS] > 0, where)
    copies = func.generate_series(2, counted.c[ROWS]).table_valued("copy").lateral("copies")
    further = (
        select(*shown).select_from(counted).join(copies, true()).where(counted.c[ROWS] > 1, where)
    )
    return select(*union_all(once, further).subquery("repeated").c)


def _value(plan: CountingPlan, output: Output, counted: FromClause) -> ColumnElement[Any]:
    if output.kind is OutputKind.KEY:
        return counted.c[key_names(plan)[output.index]]
    if output.kind is OutputKind.ROWS:
        return counted.c[ROWS]
    rows = counted.c[f"measure_{output.index}_rows"]
    if output.kind is OutputKind.COUNT:
        return rows
    if output.kind in {OutputKind.ALL, OutputKind.ANY}:
        deciding = counted.c[f"measure_{output.deciding}_rows"]
        answer = deciding == 0 if output.kind is OutputKind.ALL else deciding > 0
        return case((rows > 0, answer))
    total = _sum(plan, output.index, counted)
    return case((rows > 0, total / rows if output.kind is OutputKind.AVG else total))


def _sum(plan: CountingPlan, index: int, counted: FromClause) -> ColumnElement[Any]:
    prefix = f"measure_{index}_"
    total = counted.c[f"{prefix}sum"]
    if plan.measures[index].is_finite:
        return total
    nan, up, down = (counted.c[f"{prefix}{name}"] for name in ("nan", "infinite", "minus_infinite"))
    as_nan, as_infinite, as_minus_infinite = ODD_NUMBERS
    return case(
        (or_(nan > 0, and_(up > 0, down > 0)), as_nan),
        (up > 0, as_infinite),
        (down > 0, as_minus_infinite),
        else_=total,
    )
