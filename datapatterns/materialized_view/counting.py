"""Signed counting: add to each key what the changed rows bring or take away.

The result of a join changes by d(A)B + Ad(B) + d(A)d(B). Telescoping writes that as one term for
each table: the tables before it as they are now, its changes, and the tables after it as they
were, which is what they are now minus their changes. Every term starts from few rows. Joining the
changes of both tables with what is there *now* would count d(A)d(B) twice.

Source: the algebra of signed multisets, as in A. Gupta, I. S. Mumick, V. S. Subrahmanian,
"Maintaining views incrementally", SIGMOD 1993.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    and_,
    case,
    cast,
    func,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.sql.visitors import replacement_traverse

from datapatterns.materialized_view.counting_plan import Branch, CountingPlan, Measure
from datapatterns.materialized_view.identity import images
from datapatterns.materialized_view.key_hashes import key_hash
from datapatterns.materialized_view.sources import own_source, table_of

KEY_HASH = "key_hash"
"""The stored column by which rows are found: keys may be NULL, or longer than an index takes."""

ROWS = "rows"

ODD_NUMBERS = (
    cast(literal_column("'NaN'"), Numeric),
    cast(literal_column("'Infinity'"), Numeric),
    cast(literal_column("'-Infinity'"), Numeric),
)


def key_names(plan: CountingPlan) -> list[str]:
    """Return the stored columns that tell rows apart.

    Without GROUP BY there is one group, always; a constant stands for its key.
    """
    return [f"key_{number}" for number in range(len(plan.keys))] or ["only_group"]


def total_names(plan: CountingPlan) -> list[str]:
    """Return the stored columns that are added to."""
    return [ROWS, *(name for number in range(len(plan.measures)) for name in _names(plan, number))]


def state(
    plan: CountingPlan, where: Callable[[FromClause], ColumnElement[bool]] | None = None
) -> Select[Any]:
    """Return the query for all that is stored, from scratch.

    Args:
        plan: What is counted.
        where: Which rows, before they are added up, of a relation that has their keys.
    """
    terms = [_state_of(plan, branch) for branch in plan.branches]
    found = union_all(*terms).subquery("found")
    added = _added_up(plan, found)
    return added if where is None else added.where(where(found))


def delta(plan: CountingPlan, pending: Mapping[Table, FromClause]) -> CTE:
    """Return what ``pending`` adds to each key or takes away from it.

    Args:
        plan: What is counted.
        pending: The signed changes of each table.
    """
    terms = [
        _term(plan, number, pending, place)
        for number, branch in enumerate(plan.branches)
        for place in range(len(branch.sources))
    ]
    added = _added_up(plan, union_all(*terms).subquery("effects"))
    return added.cte("delta").prefix_with("MATERIALIZED")


def add_up(plan: CountingPlan, rows: FromClause) -> Select[Any]:
    """Return the totals of each key of ``rows``, which have the columns of the stored table."""
    keys = [rows.c[name] for name in (KEY_HASH, *key_names(plan))]
    return select(*keys, *_totals(plan, rows)).group_by(*keys, *images(plan, rows, key_names(plan)))


def _added_up(plan: CountingPlan, effects: FromClause) -> Select[Any]:
    # Keys are named below: GROUP BY would take a number among them for that of a column.
    keys = [effects.c[name] for name in key_names(plan)]
    hashed = key_hash(keys).label(KEY_HASH)
    grouped = select(hashed, *keys, *_totals(plan, effects))
    if not plan.keys:
        # So that an empty table has a row as well.
        only = literal_column("0", Integer)
        grouped = select(key_hash([only]).label(KEY_HASH), only.label(key_names(plan)[0]))
        return grouped.add_columns(*_totals(plan, effects)).select_from(effects)
    return grouped.group_by(*keys, *images(plan, effects, key_names(plan)))


def _totals(plan: CountingPlan, rows: FromClause) -> list[ColumnElement[Any]]:
    return [
        (
            func.coalesce(func.sum(rows.c[name]), 0)
            if name.endswith("_sum")
            else cast(func.coalesce(func.sum(rows.c[name]), 0), BigInteger)
        ).label(name)
        for name in total_names(plan)
    ]


def _state_of(plan: CountingPlan, branch: Branch) -> Select[Any]:
    moved = {source: source for source in branch.sources}
    return _signed(plan, branch, moved, literal_column("1", BigInteger))


def _term(
    plan: CountingPlan, which: int, pending: Mapping[Table, FromClause], place: int
) -> Select[Any]:
    branch = plan.branches[which]
    moved: dict[FromClause, FromClause] = {}
    signs: list[ColumnElement[Any]] = []
    for number, source in enumerate(branch.sources):
        changes = pending[table_of(source)]
        if number < place:
            moved[source] = source
            continue
        moved[source] = (
            changes.alias(f"changed_{which}_{number}")
            if number == place
            else _as_it_was(plan, source, changes, number)
        )
        signs.append(moved[source].c.change_sign)
    # A truncation's row has no values; with it, nothing of this is applied.
    return _signed(plan, branch, moved, _product(signs))


def _signed(
    plan: CountingPlan,
    branch: Branch,
    moved: Mapping[FromClause, FromClause],
    sign: ColumnElement[Any],
) -> Select[Any]:
    """Return the key of each row of a branch, and what it adds to the totals."""
    keys = _placed(branch, branch.keys, moved) or [literal_column("0", Integer)]
    measured = [
        column
        for number, value in enumerate(_placed(branch, branch.measures, moved))
        for column in zip(
            _names(plan, number), _brought(plan.measures[number], value, sign), strict=True
        )
    ]
    named = [*zip(key_names(plan), keys, strict=True), (ROWS, sign), *measured]
    return (
        select(*(element.label(name) for name, element in named))
        .select_from(*moved.values())
        .where(true(), *_placed(branch, branch.conditions, moved))
    )


def _names(plan: CountingPlan, number: int) -> list[str]:
    measure, prefix = plan.measures[number], f"measure_{number}_"
    names = [f"{prefix}rows"]
    if measure.is_summed:
        names.append(f"{prefix}sum")
        if not measure.is_finite:
            names += [f"{prefix}nan", f"{prefix}infinite", f"{prefix}minus_infinite"]
    return names


def _brought(
    measure: Measure, value: ColumnElement[Any], sign: ColumnElement[Any]
) -> Iterator[ColumnElement[Any]]:
    """Yield what a row adds to each total of a measure.

    Nothing can be subtracted from NaN or infinity; these are counted beside the sum.
    """
    yield case((value.is_not(None), sign), else_=0)
    if not measure.is_summed:
        return
    number = cast(value, Numeric)
    if measure.is_finite:
        yield func.coalesce(sign * number, 0)
        return
    nan, infinite, minus_infinite = ODD_NUMBERS
    # NaN counts as more than infinity.
    yield case((and_(number > minus_infinite, number < infinite), sign * number), else_=0)
    for odd in (nan, infinite, minus_infinite):
        yield case((number == odd, sign), else_=0)


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


def _placed(
    branch: Branch,
    expressions: Sequence[ColumnElement[Any]],
    moved: Mapping[FromClause, FromClause],
) -> list[Any]:
    """Return ``expressions``, said of the sources that stand for the branch's."""

    def replace(element: Any, **_: Any) -> Any:  # noqa: ANN401
        if isinstance(element, BindParameter):
            # As the plain view has it: 'a' takes the column's type, 'a'::varchar may not.
            return element.render_literal_execute()
        own = own_source(element, branch.sources)
        return None if own is None else moved[own].c[element.key]

    return [replacement_traverse(expression, {}, replace) for expression in expressions]


def _product(signs: list[ColumnElement[Any]]) -> ColumnElement[Any]:
    product: ColumnElement[int] = cast(signs[0], BigInteger)
    for sign in signs[1:]:
        product = product * sign
    return product
