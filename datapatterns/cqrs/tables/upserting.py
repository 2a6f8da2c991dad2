"""The usual statement of a projection in SQL: add to rows, or replace parts of them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Insert, SelectBase, Table, func, select
from sqlalchemy.dialects.postgresql import insert


def upsert(
    table: Table[Any],
    rows: SelectBase,
    *,
    add: Sequence[str] = (),
    put: Sequence[str] = (),
) -> Insert:
    """Return a statement that inserts ``rows``, or changes those that are there.

    Rows are written in the order of their keys, so that runners which write the same ones wait for
    each other instead of deadlocking.

    Args:
        table: What to write.
        rows: Each key once, so group by it; its columns are called as those of ``table``.
        add: Columns to add to; NULL adds nothing.
        put: Columns to replace. Others keep what their row began with.

    Raises:
        ValueError: ``rows`` has a column that ``table`` has not, or lacks one of the key or of
            those to change; or a column is to be changed twice, or is part of the key.
    """
    page = rows.subquery("page")
    key = [column.name for column in table.primary_key.columns]
    given = [column.name for column in page.c]
    _check(table, key, given, [*add, *put])
    # In the order of the key, whatever order they came in.
    ordered = select(*page.c).order_by(*(page.c[name] for name in key))
    statement = insert(table).from_select(given, ordered)
    if not add and not put:
        return statement.on_conflict_do_nothing(index_elements=key)
    fresh = statement.excluded
    changed: dict[str, ColumnElement[Any]] = {name: fresh[name] for name in put}
    for name in add:
        there = table.c[name]
        changed[name] = func.coalesce(there + fresh[name], there, fresh[name])
    return statement.on_conflict_do_update(index_elements=key, set_=changed)


def _check(table: Table[Any], key: list[str], given: list[str], changed: list[str]) -> None:
    if not key:
        raise ValueError(f"{table.name} has no primary key, so no row is there already")
    strange = [name for name in given if name not in table.c]
    if strange:
        raise ValueError(f"{table.name} has no column {strange[0]!r}; label it as one of its own")
    missing = [name for name in (*key, *changed) if name not in given]
    if missing:
        raise ValueError(f"the rows for {table.name} have no column {missing[0]!r}; select it")
    if len(set(changed)) < len(changed):
        raise ValueError("a column is named twice; either add to it or put it")
    if not set(changed).isdisjoint(key):
        raise ValueError("a row's key does not change; leave it out of add and put")
