"""Find every key whose rows changes may concern: too many cost time, too few would cost truth."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    FromClause,
    Select,
    Table,
    Text,
    Values,
    and_,
    case,
    cast,
    column,
    func,
    literal_column,
    null,
    select,
    true,
    union_all,
    values,
)

from datapatterns.materialized_view.grouping.expressions import columns_in, placed
from datapatterns.materialized_view.grouping.join_tree import Condition, Step
from datapatterns.materialized_view.grouping.plan import GroupPlan
from datapatterns.materialized_view.sources import table_of

PREFIX = "datapatterns"
"""What all names begin with that share a statement with those of the query's tables."""

SIGN = "change_sign"


def dirty_keys(plan: GroupPlan, pending: Mapping[Table, FromClause]) -> CTE:
    """Return the keys that ``pending`` changes may concern, each once, as ``key_0`` and so on.

    Args:
        plan: The query.
        pending: For each of its tables the changed rows: ``change_sign``, 1 for one that has come
            and -1 for one that has gone, and all columns that the query names.
    """
    images = {table: _images(plan, pending, table) for table in plan.tables}
    concerned = union_all(*_ways(plan, images)).subquery(f"{PREFIX}_concerned")
    missing = _missing(plan)
    parts = {
        part: _unless_missing(concerned.c[f"part_{number}"], part[0], missing)
        for number, part in enumerate(plan.key_columns)
    }
    keys = [
        placed(key.expression, plan.sources, parts).label(f"key_{number}")
        for number, key in enumerate(plan.keys)
    ]
    found = select(*keys).select_from(concerned)
    if missing is not None:
        found = found.join(missing, true())
    return found.distinct().cte(f"{PREFIX}_dirty").prefix_with("MATERIALIZED")


def _images(plan: GroupPlan, pending: Mapping[Table, FromClause], table: Table) -> CTE:
    """Return the rows that were there or are there now, but not both.

    Of what came and went in between, expressions might not even be defined. Equal values need not
    be the same: a change from 1.0 to 1.00 is one.
    """
    changes = pending[table]
    named = [changes.c[own.key] for own in plan.columns_of(table)]
    written = cast(func.row(*named), Text)
    labelled = (value.label(f"value_{number}") for number, value in enumerate(named))
    return (
        select(literal_column("1").label("one"), *labelled)
        .select_from(changes)
        .group_by(*named, written)
        .having(func.sum(changes.c[SIGN]) != literal_column("0"))
        .cte(f"{PREFIX}_images_{plan.tables.index(table)}")
        .prefix_with("MATERIALIZED")
    )


def _ways(plan: GroupPlan, images: Mapping[Table, CTE]) -> Iterator[Select[Any]]:
    """Yield queries for what keys are made of, of all that changed rows may have to do with.

    Of the changed rows of a combination, the way starts from the first; so the tables before it
    are taken as they are now, and those after it as they are and as they were. That is a query
    for each choice: together in one, no index would serve them.
    """
    for start in range(len(plan.sources)):
        steps = plan.tree.route(start, (key.occurrence for key in plan.keys))
        choices = ([False] if step.occurrence < start else [False, True] for step in steps)
        for number, choice in enumerate(product(*choices)):
            changed = {step.occurrence: then for step, then in zip(steps, choice, strict=True)}
            relations = {
                occurrence: _relation(plan, images, occurrence, f"{start}_{number}", then=then)
                for occurrence, then in {start: True, **changed}.items()
            }
            yield _way(plan, relations, start, steps)


def _way(
    plan: GroupPlan,
    relations: Mapping[int, "_Relation"],
    start: int,
    steps: Iterable[Step],
) -> Select[Any]:
    route = relations[start].source
    for step in steps:
        on = _said_of(plan, step.conditions, relations)
        route = route.join(relations[step.occurrence].source, on, isouter=step.optional)
    parts = [
        relations[occurrence].values[key].label(f"part_{number}")
        for number, (occurrence, key) in enumerate(plan.key_columns)
    ]
    filters = _said_of(plan, plan.tree.filters(start), relations)
    return select(*parts).select_from(route).where(filters)


class _Relation(NamedTuple):
    """What stands for a table on a way, and the values of the table's columns there."""

    source: FromClause
    values: dict[str, ColumnElement[Any]]


def _relation(
    plan: GroupPlan, images: Mapping[Table, CTE], occurrence: int, way: str, *, then: bool
) -> _Relation:
    table = table_of(plan.sources[occurrence])
    name = f"{PREFIX}_way_{way}_{occurrence}"
    keys = [str(own.key) for own in plan.columns_of(table)]
    if then:
        rows: FromClause = images[table].alias(name)
        return _Relation(rows, {key: rows.c[f"value_{n}"] for n, key in enumerate(keys)})
    rows = table.alias(name)
    return _Relation(rows, {key: rows.c[key] for key in keys})


def _said_of(
    plan: GroupPlan, conditions: Iterable[Condition], relations: Mapping[int, _Relation]
) -> ColumnElement[bool]:
    said = []
    for condition in conditions:
        named = columns_in(condition.expression, plan.sources)
        columns = {part: relations[part[0]].values[part[1]] for part in named}
        said.append(placed(condition.expression, plan.sources, columns))
    return and_(true(), *said)


def _missing(plan: GroupPlan) -> Values | None:
    """Return one row for each choice of the tables that a joined row may be without.

    When a row comes that an outer join was missing, it takes others out of the group without it,
    which no change names.
    """
    nullable = plan.nullable_key_tables
    if not nullable:
        return None
    columns = [column(f"without_{occurrence}", Boolean) for occurrence in nullable]
    choices = list(product([False, True], repeat=len(nullable)))
    return values(*columns, name=f"{PREFIX}_missing", literal_binds=True).data(choices)


def _unless_missing(
    value: ColumnElement[Any], occurrence: int, missing: Values | None
) -> ColumnElement[Any]:
    if missing is None or f"without_{occurrence}" not in missing.c:
        return value
    return case((missing.c[f"without_{occurrence}"], null()), else_=value)
