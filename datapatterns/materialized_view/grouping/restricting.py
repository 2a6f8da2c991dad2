"""Restrict query and stored rows to dirty keys, both in the same way.

NULLs make it two ways. Keys without a NULL are compared by ``=``, which indexes serve. In keys
with one, ``=`` knows no answer and ``IS NOT DISTINCT FROM`` can neither hash nor use an index;
their hashes, for which NULLs are equal, are compared instead. Two keys with one hash cost the time
for a group too many, as long as the query and the stored rows are restricted alike.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    CompoundSelect,
    Exists,
    and_,
    exists,
    null,
    or_,
    select,
    tuple_,
    union_all,
)

from datapatterns.materialized_view.grouping.plan import GroupPlan
from datapatterns.materialized_view.key_hashes import key_hash


def in_dirty(keys: Sequence[ColumnElement[Any]], dirty: CTE) -> list[ColumnElement[bool]]:
    """Return conditions of which one holds if the key is dirty; never two of them.

    To be used in a branch of their own each: joined by OR, no index would serve them.
    """
    return [_whole_in_dirty(keys, dirty), _with_null_in_dirty(keys, dirty)]


def not_in_dirty(keys: Sequence[ColumnElement[Any]], dirty: CTE) -> ColumnElement[bool]:
    """Return a condition that holds if the key is not dirty, whatever is NULL."""
    looked_at = dirty.alias("datapatterns_not_in")
    pairs = zip(keys, looked_at.c, strict=True)
    same = exists().select_from(looked_at).where(*(key == other for key, other in pairs))
    if len(keys) == 1:
        alike = and_(_some_null(keys), _any_with_null(dirty))
        return and_(~same, ~alike)
    also = dirty.alias("datapatterns_nor_in")
    others = [*also.c]
    alike_too = (
        exists()
        .select_from(also)
        .where(_some_null(keys), _some_null(others), key_hash(keys) == key_hash(others))
    )
    return and_(~same, ~alike_too)


def fresh_rows(
    plan: GroupPlan, dirty: CTE, allowed: ColumnElement[bool]
) -> CompoundSelect[*tuple[Any, ...]]:
    """Return the query for what is stored, for dirty keys only; no row unless ``allowed``."""
    ways = in_dirty(plan.key_values(), dirty)
    return union_all(*(plan.rows_where(allowed, way) for way in ways))


def _whole_in_dirty(keys: Sequence[ColumnElement[Any]], dirty: CTE) -> ColumnElement[bool]:
    wanted = select(*dirty.c).where(*(key.is_distinct_from(null()) for key in dirty.c))
    return (keys[0] if len(keys) == 1 else tuple_(*keys)).in_(wanted)


def _with_null_in_dirty(keys: Sequence[ColumnElement[Any]], dirty: CTE) -> ColumnElement[bool]:
    # The last is looked at once, and if it does not hold, nothing is read at all.
    conditions = [_some_null(keys), _any_with_null(dirty)]
    if len(keys) > 1:
        others = [*dirty.c]
        conditions.append(key_hash(keys).in_(select(key_hash(others)).where(_some_null(others))))
    return and_(*conditions)


def _some_null(keys: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    # A row of NULLs IS NULL, too, yet equals another such.
    return or_(*(key.is_not_distinct_from(null()) for key in keys))


def _any_with_null(dirty: CTE) -> Exists:
    return exists().select_from(dirty).where(_some_null([*dirty.c]))
