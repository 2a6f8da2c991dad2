"""The statement that applies pending changes to what is stored by counting."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Select,
    Table,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    true,
    union_all,
    update,
)

from datapatterns.change_log import current_snapshot
from datapatterns.materialized_view.counting import (
    KEY_HASH,
    ROWS,
    delta,
    key_names,
    state,
    total_names,
)
from datapatterns.materialized_view.counting_plan import CountingPlan
from datapatterns.materialized_view.identity import same_key
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.pending_changes import changes_of
from datapatterns.materialized_view.rebuilding import rebuild
from datapatterns.materialized_view.relations import stored_of
from datapatterns.materialized_view.within import Anew, outside


def application(
    plan: CountingPlan,
    names: ViewNames,
    pending: Mapping[Table, CTE],
    *,
    anew: Anew | None = None,
    compared_as_text: Sequence[str] = (),
) -> Select[Any]:
    """Return the statement that adds what is pending to what is stored.

    It answers with one row: the snapshot it ran in; how many changes were pending; whether a
    table was truncated, and then it changed nothing; how many keys it touched, and how many of
    these would have fewer rows than none.

    It relies on nobody else writing the stored rows: refreshers exclude each other by the
    consumer.

    Args:
        plan: What is counted.
        names: The view's.
        pending: The changed rows of each of its tables.
        anew: A part of the view that is added up from scratch in the same snapshot; nothing is
            added to it.
        compared_as_text: The stored columns whose equal values may differ, and matter.
    """
    changed = changes_of(pending, anew).cte("changed").prefix_with("MATERIALIZED")
    truncated = exists().where(changed.c.says_nothing)
    added = delta(plan, pending)
    allowed = ~truncated
    if anew is not None:
        allowed &= outside(anew.within, [added.c[name] for name in key_names(plan)])
    change = _change(plan, added, allowed)
    stored = stored_of(names, [KEY_HASH, *key_names(plan), *total_names(plan)])
    found = and_(
        stored.c[KEY_HASH] == change.c[KEY_HASH], same_key(plan, stored, change, key_names(plan))
    )
    after = {name: stored.c[name] + change.c[name] for name in total_names(plan)}
    # Without GROUP BY there is one group, which shows even if it is empty.
    stays = or_(change.c[ROWS] >= 0, after[ROWS] != 0) if plan.keys else true()
    write = update(stored).values(after).where(found, stays)
    updated = write.returning(change.c.number, stored.c[ROWS]).cte("updated")
    met = [select(*updated.c)]
    if plan.keys:
        clear = delete(stored).where(found, change.c[ROWS] < 0, after[ROWS] == 0)
        emptied = clear.returning(change.c.number, after[ROWS].label(ROWS)).cte("emptied")
        met.append(select(*emptied.c))
    held = union_all(*met).cte("held").prefix_with("MATERIALIZED")
    columns = [KEY_HASH, *key_names(plan), *total_names(plan)]
    new = select(*(change.c[name] for name in columns)).where(
        change.c.number.not_in(select(held.c.number)), *([change.c[ROWS] != 0] if plan.keys else [])
    )
    inserted = insert(stored).from_select(columns, new).returning(stored.c[ROWS]).cte("added")
    written = union_all(select(held.c[ROWS]), select(inserted.c[ROWS])).cte("written")
    counts = (
        select(func.count()).select_from(changed).scalar_subquery().label("pending"),
        truncated.label("truncated"),
        _counted(written, true()).label("touched"),
        _counted(written, written.c[ROWS] < 0).label("negative"),
    )
    if anew is None:
        return select(current_snapshot.label("snapshot"), *counts)

    def part(rows: FromClause) -> ColumnElement[bool]:
        return ~truncated & anew.within([rows.c[name] for name in key_names(plan)])

    again = rebuild(
        state(plan, part),
        names,
        columns,
        compared_as_text=compared_as_text,
        only=lambda rows: [part(rows)],
    )
    return again.add_columns(*counts)


def _change(plan: CountingPlan, delta: CTE, allowed: ColumnElement[bool]) -> CTE:
    """Return what is added to each key, and a number by which to tell which keys were found."""
    changes_something = or_(*(delta.c[name] != 0 for name in total_names(plan)))
    number = func.row_number().over().label("number")
    return (
        select(number, *delta.c)
        .where(allowed, changes_something)
        .cte("change")
        .prefix_with("MATERIALIZED")
    )


def _counted(rows: FromClause, which: ColumnElement[bool]) -> ColumnElement[int]:
    return select(func.count()).select_from(rows).where(which).scalar_subquery()
