"""Signed counting: add to each group what the changed rows bring or take away.

The result of a join changes by d(A)B + Ad(B) + d(A)d(B). Telescoping writes that as one term for
each table: the tables before it as they are now, its changes, and the tables after it as they
were, which is what they are now minus their changes. Every term starts from few rows. Joining the
changes of both tables with what is there *now* would count d(A)d(B) twice.

Source: the algebra of signed multisets, as in A. Gupta, I. S. Mumick, V. S. Subrahmanian,
"Maintaining views incrementally", SIGMOD 1993.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    BindParameter,
    ColumnElement,
    FromClause,
    Integer,
    Numeric,
    Select,
    SmallInteger,
    Table,
    TableClause,
    Text,
    and_,
    case,
    cast,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.visitors import replacement_traverse

from datapatterns.change_log import current_snapshot
from datapatterns.materialized_view.algebra import CountingPlan, own_source, table_of

ROWS = "rows"
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def key_names(plan: CountingPlan) -> list[str]:
    """Return the stored columns that tell groups apart.

    Without GROUP BY there is one group, always; a constant stands for its key.
    """
    return [f"key_{number}" for number in range(len(plan.keys))] or ["only_group"]


def total_names(plan: CountingPlan) -> list[str]:
    """Return the stored columns that are added to."""
    measured = (
        name
        for number in range(len(plan.measures))
        for name in (f"measure_{number}_rows", f"measure_{number}_sum")
    )
    return [ROWS, *measured]


def state(plan: CountingPlan) -> Select[Any]:
    """Return the query for all that is stored, from scratch."""
    moved = {source: source for source in plan.sources}
    keys, conditions, measures = _placed(plan, moved)
    totals: list[ColumnElement[Any]] = [func.count()]
    for measure, total in zip(measures, _summed(plan, measures), strict=True):
        totals += [func.count(measure), func.coalesce(func.sum(total), 0)]
    query = (
        select(*_labelled(key_names(plan), keys), *_labelled(total_names(plan), totals))
        .select_from(*plan.sources)
        .where(true(), *conditions)
    )
    return query.group_by(*keys) if plan.keys else query


def application(
    plan: CountingPlan, stored: TableClause, pending: Mapping[Table, CTE]
) -> Select[Any]:
    """Return the statement that adds what is pending to ``stored``.

    It answers with one row: the snapshot it ran in; how many changes were pending; whether a
    table was truncated, and then it changed nothing; how many groups it touched, and how many of
    these are empty, hold fewer rows than none, or a sum that cannot be subtracted from.
    """
    signs = [select(cte.c.change_sign) for cte in pending.values()]
    changed = union_all(*signs).cte("changed").prefix_with("MATERIALIZED")
    truncated = exists().where(changed.c.change_sign == 0)
    applied = _applied(plan, stored, delta(plan, pending), ~truncated)
    return select(
        current_snapshot.label("snapshot"),
        select(func.count()).select_from(changed).scalar_subquery().label("pending"),
        truncated.label("truncated"),
        *_findings(plan, applied),
    )


def delta(plan: CountingPlan, pending: Mapping[Table, FromClause]) -> CTE:
    """Return what ``pending`` adds to each group or takes away from it.

    Args:
        plan: What is counted.
        pending: The signed changes of each table.
    """
    terms = union_all(*(_term(plan, pending, place) for place in range(len(plan.sources))))
    effects = terms.subquery("effects")
    keys = [effects.c[name] for name in key_names(plan)]
    totals = [func.sum(effects.c[name]).label(name) for name in total_names(plan)]
    return select(*keys, *totals).group_by(*keys).cte("delta").prefix_with("MATERIALIZED")


def _term(plan: CountingPlan, pending: Mapping[Table, FromClause], place: int) -> Select[Any]:
    moved: dict[FromClause, FromClause] = {}
    signs: list[ColumnElement[Any]] = []
    for number, source in enumerate(plan.sources):
        changes = pending[table_of(source)]
        if number < place:
            moved[source] = source
            continue
        moved[source] = (
            changes.alias(f"changed_{number}")
            if number == place
            else _as_it_was(plan, source, changes, number)
        )
        signs.append(moved[source].c.change_sign)
    sign = _product(signs)
    keys, conditions, measures = _placed(plan, moved)
    totals: list[ColumnElement[Any]] = [sign]
    for measure, total in zip(measures, _summed(plan, measures), strict=True):
        totals += [case((measure.is_(None), 0), else_=sign), func.coalesce(sign * total, 0)]
    # A truncation's row has no values; with it, nothing of this is applied.
    return (
        select(*_labelled(key_names(plan), keys), *_labelled(total_names(plan), totals))
        .select_from(*moved.values())
        .where(true(), *conditions)
    )


def _as_it_was(
    plan: CountingPlan, source: FromClause, changes: FromClause, number: int
) -> FromClause:
    base = table_of(source)
    columns = plan.columns_of(base)
    now = select(literal_column("1", SmallInteger).label("change_sign"), *columns)
    undone = select(
        cast(-changes.c.change_sign, SmallInteger), *(changes.c[own.key] for own in columns)
    )
    return union_all(now.select_from(base), undone).subquery(f"before_{number}")


def _applied(
    plan: CountingPlan, stored: TableClause, delta: CTE, allowed: ColumnElement[bool]
) -> CTE:
    total_columns = total_names(plan)
    changes_something = or_(*(delta.c[name] != 0 for name in total_columns))
    upsert = insert(stored).from_select(
        [*key_names(plan), *total_columns],
        select(*delta.c).where(allowed, changes_something),
    )
    added = {name: stored.c[name] + upsert.excluded[name] for name in total_columns}
    return (
        upsert.on_conflict_do_update(index_elements=key_names(plan), set_=added)
        .returning(*(stored.c[name] for name in total_columns))
        .cte("applied")
    )


def _findings(plan: CountingPlan, applied: CTE) -> Iterator[ColumnElement[Any]]:
    rows = applied.c[ROWS]
    finite = [
        cast(applied.c[f"measure_{number}_sum"], Text).not_in(_NOT_FINITE)
        for number in range(len(plan.measures))
    ]
    questions = {
        "touched": true(),
        "emptied": rows == 0,
        "negative": rows < 0,
        "unsubtractable": ~_all(finite),
    }
    for label, question in questions.items():
        counted = select(func.count()).select_from(applied).where(question)
        yield counted.scalar_subquery().label(label)


def _placed(
    plan: CountingPlan, moved: Mapping[FromClause, FromClause]
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return keys, conditions and measures, said of the sources that stand for the plan's."""

    def replace(element: Any, **_: Any) -> Any:  # noqa: ANN401
        if isinstance(element, BindParameter):
            # As the plain view has it: 'a' takes the column's type, 'a'::varchar may not.
            return element.render_literal_execute()
        own = own_source(element, plan.sources)
        return None if own is None else moved[own].c[element.key]

    def place(expression: ColumnElement[Any]) -> Any:  # noqa: ANN401
        return replacement_traverse(expression, {}, replace)

    return (
        [place(key) for key in plan.keys] or [literal_column("0", Integer)],
        [place(condition) for condition in plan.conditions],
        [place(measure) for measure in plan.measures],
    )


def _summed(plan: CountingPlan, measures: list[Any]) -> list[ColumnElement[Any]]:
    """Return what is added up for each measure; text, say, can be counted but not summed."""
    return [
        cast(measure, Numeric)
        if isinstance(own.type, Integer | Numeric)
        else literal_column("0", Numeric)
        for own, measure in zip(plan.measures, measures, strict=True)
    ]


def _product(signs: list[ColumnElement[Any]]) -> ColumnElement[Any]:
    product: ColumnElement[int] = cast(signs[0], BigInteger)
    for sign in signs[1:]:
        product = product * sign
    return product


def _all(conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    return and_(true(), *conditions)


def _labelled(names: list[str], elements: list[Any]) -> list[Any]:
    return [element.label(name) for name, element in zip(names, elements, strict=True)]
