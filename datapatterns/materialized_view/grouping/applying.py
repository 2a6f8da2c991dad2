"""Bring the stored rows of dirty groups up to date, or show them as they would be."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Select,
    Table,
    TableClause,
    exists,
    false,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    union_all,
)

from datapatterns.materialized_view.grouping.dirty_keys import PREFIX, dirty_keys
from datapatterns.materialized_view.grouping.plan import GroupPlan
from datapatterns.materialized_view.grouping.restricting import fresh_rows, in_dirty, not_in_dirty
from datapatterns.materialized_view.key_hashes import key_hash
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.pending_changes import changes_of
from datapatterns.materialized_view.rebuilding import rebuild
from datapatterns.materialized_view.relations import definition_of, stored_of
from datapatterns.materialized_view.within import Anew, outside

_WORTH_IT = 3
"""Stored rows for each dirty group; measured: a fifth of all groups takes half the time of all."""

_ALWAYS_WORTH_IT = 16
"""Groups."""


def apply_groups(
    plan: GroupPlan,
    names: ViewNames,
    pending: Mapping[Table, FromClause],
    *,
    anew: Anew | None = None,
    compared_as_text: Sequence[str] = (),
) -> Select[Any]:
    """Return the statement that applies ``pending`` changes to the stored rows.

    It answers with one row: the snapshot it ran in; how many changes were pending; whether it is
    ``done``, which it is not if a table was truncated or most groups are dirty, and then it
    changed nothing; how many groups it looked at; and how many rows it deleted and inserted.

    Args:
        plan: The query; its ``stored_columns`` are those of the stored table.
        names: The view's.
        pending: The changed rows of each of its tables, see `dirty_keys`.
        anew: A part of the view that is looked at whatever has changed.
        compared_as_text: The stored columns whose equal values may differ, as 1.0 and 1.00 do.
    """
    changed = changes_of({t: pending[t] for t in pending if t in plan.tables}, anew)
    changed_cte = changed.cte(f"{PREFIX}_changed").prefix_with("MATERIALIZED")
    truncated = exists().select_from(changed_cte).where(changed_cte.c.says_nothing)
    dirty = dirty_keys(plan, pending)
    if anew is not None:
        others = select(*dirty.c).where(outside(anew.within, [*dirty.c]))
        dirty = others.cte(f"{PREFIX}_others").prefix_with("MATERIALIZED")
    told = select((~truncated & _is_small_part(plan, names, dirty)).label("enough"))
    enough = select(told.cte(f"{PREFIX}_told").prefix_with("MATERIALIZED").c.enough)

    def ways(keys: Sequence[ColumnElement[Any]]) -> list[ColumnElement[bool]]:
        found = in_dirty(keys, dirty)
        if anew is None:
            return found
        # Keys of one hash may be on either side.
        return [*(way & outside(anew.within, keys) for way in found), anew.within(keys)]

    def only(stored: TableClause) -> list[ColumnElement[bool]]:
        keys = [stored.c[name] for name in plan.stored_keys]
        return [enough.scalar_subquery() & way for way in ways(keys)]

    allowed = enough.scalar_subquery()
    applied = rebuild(
        union_all(*(plan.rows_where(allowed, way) for way in ways(plan.key_values()))),
        names,
        plan.stored_columns,
        compared_as_text=compared_as_text,
        only=only,
    )
    return applied.add_columns(
        select(func.count()).select_from(changed_cte).scalar_subquery().label("pending"),
        enough.scalar_subquery().label("done"),
        select(func.count()).select_from(dirty).scalar_subquery().label("groups"),
    )


def current(
    plan: GroupPlan,
    names: ViewNames,
    pending: Mapping[Table, FromClause],
    marker: FromClause,
) -> Select[Any]:
    """Return what the query gives now, most of it from the stored rows.

    Args:
        plan: The query.
        names: The view's.
        pending: The changed rows of each of its tables, see `dirty_keys`.
        marker: One row: ``seen``, whether these do not say enough; then it is the query itself, as
            it is when most groups are dirty.
    """
    dirty = dirty_keys(plan, pending)
    told = select((marker.c.seen | ~_is_small_part(plan, names, dirty)).label("seen"))
    told_cte = told.select_from(marker).cte(f"{PREFIX}_told").prefix_with("MATERIALIZED")
    seen = select(told_cte.c.seen).scalar_subquery()
    stored = stored_of(names, plan.stored_columns)
    fresh = fresh_rows(plan, dirty, not_(seen)).subquery(f"{PREFIX}_fresh")
    keys = [stored.c[name] for name in plan.stored_keys]
    kept = shown_of(plan, stored).where(not_(seen), not_in_dirty(keys, dirty))
    anew = select(*definition_of(names, plan.output_names).c).where(seen)
    return select(*union_all(kept, shown_of(plan, fresh), anew).subquery("current").c)


def shown_of(plan: GroupPlan, stored: FromClause) -> Select[Any]:
    """Return what the query shows, of rows as they are stored."""
    pairs = zip(plan.shown_columns, plan.output_names, strict=True)
    return select(*(stored.c[own].label(shown) for own, shown in pairs))


def _is_small_part(plan: GroupPlan, names: ViewNames, dirty: CTE) -> ColumnElement[bool]:
    """Return whether so few groups are dirty that looking for them is worth it.

    Beyond, the whole query is cheaper: it needs no way to the groups. No more stored rows are
    looked at than it takes to tell.
    """
    found = select(func.count()).select_from(dirty).scalar_subquery()
    stored: Select[Any] = select(literal_column("1").label("one")).select_from(
        stored_of(names, plan.stored_columns)
    )
    others = exists(stored.offset(found * literal(_WORTH_IT)))
    return or_(found <= literal(_ALWAYS_WORTH_IT), others)


def probe(plan: GroupPlan, pending: Mapping[Table, FromClause]) -> Select[Any]:
    """Return a statement, without a result of interest, that fails if keys cannot be kept.

    The server says when it plans a statement whether it can compare values of a type, but only
    when it runs one whether it can hash them; NULLs will do for that.
    """
    dirty = dirty_keys(plan, pending)
    fresh = fresh_rows(plan, dirty, false()).subquery(f"{PREFIX}_fresh")
    keys = [fresh.c[name] for name in plan.stored_keys]
    one = select(literal_column("1").label("one")).subquery(f"{PREFIX}_one")
    nulls = one.outerjoin(fresh, not_in_dirty(keys, dirty))
    return select(key_hash(keys) if len(keys) > 1 else keys[0]).select_from(nulls)
