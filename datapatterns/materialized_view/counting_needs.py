"""What must be true in a database for a query to be countable there, whatever the models say."""

from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

from sqlalchemy import BindParameter, Column, ColumnElement
from sqlalchemy.sql.visitors import iterate

from datapatterns.change_log.inspecting import table_name
from datapatterns.materialized_view.blueprint import Need, Requirement
from datapatterns.materialized_view.counting import key_names
from datapatterns.materialized_view.counting_plan import CountingPlan, OutputKind, Shape
from datapatterns.materialized_view.identity import imaged
from datapatterns.materialized_view.sources import table_of
from datapatterns.materialized_view.totality import calculated_columns


def needs_of(plan: CountingPlan) -> Iterator[Requirement]:
    """Yield them, what the whole query must be first."""
    yield Requirement(table="", column="", need=Need.TOTAL)
    columns = [*_of_times(plan), *_of_calculations(plan), *_of_measures(plan)]
    yield from (_required(column, need) for column, need in columns)
    known = imaged(plan)
    for number, name in enumerate(key_names(plan) if plan.keys else ()):
        yield Requirement(table="", column=name, need=Need.HASHABLE)
        if plan.shape is Shape.ROWS and number not in known:
            yield Requirement(table="", column=name, need=Need.IDENTICAL)


def _of_times(plan: CountingPlan) -> Iterator[tuple[Column[Any], Need]]:
    if not any(map(_has_local_time, _parts(plan))):
        return
    for table in plan.tables:
        yield from ((column, Need.NO_ZONE) for column in plan.columns_of(table))


def _of_calculations(plan: CountingPlan) -> Iterator[tuple[Column[Any], Need]]:
    for part in _parts(plan):
        yield from ((column, Need.FIXED_SCALE) for column in calculated_columns(part))


def _of_measures(plan: CountingPlan) -> Iterator[tuple[Column[Any], Need]]:
    averaged = {output.index for output in plan.outputs if output.kind is OutputKind.AVG}
    for number, measure in enumerate(plan.measures):
        if not measure.is_summed:
            continue
        for branch in plan.branches:
            for column in _columns(branch.values[number]):
                if measure.is_finite:
                    yield column, Need.INTEGER
                elif number in averaged:
                    yield column, Need.FIXED_SCALE


def _parts(plan: CountingPlan) -> Iterator[ColumnElement[Any]]:
    for branch in plan.branches:
        yield from branch.parts


def _columns(expression: ColumnElement[Any]) -> Iterator[Column[Any]]:
    yield from (part for part in iterate(expression) if isinstance(part, Column))


def _has_local_time(expression: ColumnElement[Any]) -> bool:
    """Return whether a date or time without a zone is in it."""
    bound = (part for part in iterate(expression) if isinstance(part, BindParameter))
    values = (v for p in bound for v in (p.value or () if p.expanding else (p.value,)))
    return any(
        isinstance(v, date) and (not isinstance(v, datetime) or v.tzinfo is None) for v in values
    )


def _required(column: Column[Any], need: Need) -> Requirement:
    return Requirement(table_name(table_of(column.table)), column.name, need)
