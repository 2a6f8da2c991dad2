"""The statement that applies pending changes to what is stored by counting."""

from collections.abc import Mapping
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
    total_names,
)
from datapatterns.materialized_view.counting_plan import CountingPlan
from datapatterns.materialized_view.identity import same_key
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.relations import stored_of


def application(plan: CountingPlan, names: ViewNames, pending: Mapping[Table, CTE]) -> Select[Any]:
    """Return the statement that adds what is pending to what is stored.

    It answers with one row: the snapshot it ran in; how many changes were pending; whether a
    table was truncated, and then it changed nothing; how many keys it touched, and how many of
    these would have fewer rows than none.

    It relies on nobody else writing the stored rows: refreshers exclude each other by the
    consumer.
    """
    signs = [select(cte.c.change_sign) for cte in pending.values()]
    changed = union_all(*signs).cte("changed").prefix_with("MATERIALIZED")
    truncated = exists().where(changed.c.change_sign == 0)
    stored = stored_of(names, [KEY_HASH, *key_names(plan), *total_names(plan), "ctid"])
    after = _after(plan, stored, delta(plan, pending), ~truncated)
    held = stored.c.ctid == after.c.held
    totals = {name: after.c[name] for name in total_names(plan)}
    columns = [KEY_HASH, *key_names(plan), *total_names(plan)]
    new = select(*(after.c[name] for name in columns)).where(after.c.held.is_(None))
    written = [update(stored).values(totals).where(held).cte("updated")]
    if plan.keys:
        # Without GROUP BY there is one group, which shows even if it is empty.
        stays = after.c[ROWS] != 0
        new = new.where(stays)
        written = [
            update(stored).values(totals).where(held, stays).cte("updated"),
            delete(stored).where(held, ~stays).cte("emptied"),
        ]
    return select(
        current_snapshot.label("snapshot"),
        select(func.count()).select_from(changed).scalar_subquery().label("pending"),
        truncated.label("truncated"),
        _counted(after, true()).label("touched"),
        _counted(after, after.c[ROWS] < 0).label("negative"),
    ).add_cte(*written, insert(stored).from_select(columns, new).cte("inserted"))


def _after(plan: CountingPlan, stored: FromClause, delta: CTE, allowed: ColumnElement[bool]) -> CTE:
    """Return what the touched keys have afterwards, and where they are held so far."""
    names = total_names(plan)
    changes_something = or_(*(delta.c[name] != 0 for name in names))
    found = and_(
        stored.c[KEY_HASH] == delta.c[KEY_HASH], same_key(plan, stored, delta, key_names(plan))
    )
    return (
        select(
            *(delta.c[name] for name in (KEY_HASH, *key_names(plan))),
            *((func.coalesce(stored.c[n], 0) + delta.c[n]).label(n) for n in names),
            stored.c.ctid.label("held"),
        )
        .select_from(delta.outerjoin(stored, found))
        .where(allowed, changes_something)
        .cte("after")
        .prefix_with("MATERIALIZED")
    )


def _counted(rows: FromClause, which: ColumnElement[bool]) -> ColumnElement[int]:
    return select(func.count()).select_from(rows).where(which).scalar_subquery()
