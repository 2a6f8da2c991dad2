"""Views that are built upon other views: what they read, and up to where that shows the tables.

A view reads what another one has stored, and follows the changes of that. So what it shows is as
old as the oldest of what it is built upon: with each refresh is written down how far that was.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Text,
    func,
    insert,
    literal,
    select,
    update,
)

from datapatterns.change_log import Xid, Xid8, change_log_tables, pending_for
from datapatterns.errors import ViewInUseError, ViewNotPopulatedError
from datapatterns.materialized_view.as_of import AsOf, earliest
from datapatterns.materialized_view.determinism import Base, read_bases
from datapatterns.materialized_view.names import ViewNames, view_names
from datapatterns.materialized_view.pending_changes import count_pending
from datapatterns.materialized_view.reports import RefreshReport
from datapatterns.materialized_view.schema import materialized_views, view_parents

Report = TypeVar("Report", bound=RefreshReport | None)


def find_bases(conn: Connection, names: ViewNames, definition: str) -> list[Base]:
    """Return the tables whose changes the view follows; of another view that is what it stores.

    Args:
        conn: A connection in a transaction.
        names: The view's.
        definition: The plain view of its query, as SQL writes its name.
    """
    return as_stored(conn, names, read_bases(conn, definition))


def as_stored(conn: Connection, names: ViewNames, bases: Sequence[Base]) -> list[Base]:
    """Return ``bases``, and instead of other views what they store."""
    below = find_parents(conn, names, bases)
    return [
        Base(base.schema, view_names(base.schema, base.name).stored, below[base.name])
        if base.schema == names.schema and base.name in below
        else base
        for base in bases
    ]


def find_parents(
    conn: Connection, names: ViewNames, bases: Iterable[Base]
) -> dict[str, tuple[str, ...]]:
    """Return which of ``bases`` are views of ours, each with the columns that it stores."""
    wanted = [base.name for base in bases if base.schema == names.schema]
    if not wanted:
        return {}
    views = materialized_views(names.schema)
    stored = select(views.c.name, views.c.blueprint["stored"]).where(views.c.name.in_(wanted))
    return {name: tuple(columns) for name, columns in conn.execute(stored)}


def record_parents(conn: Connection, names: ViewNames, parents: Iterable[str]) -> None:
    """Write down what a new view is built upon."""
    table = view_parents(names.schema)
    rows = [{"view": names.view, "parent": parent} for parent in parents]
    if rows:
        conn.execute(insert(table), rows)


def require_no_children(conn: Connection, names: ViewNames) -> None:
    """Refuse to take away what the view stores while other views are built upon it.

    Raises:
        ViewInUseError: They are named.
    """
    table, views = view_parents(names.schema), materialized_views(names.schema)
    found = {*conn.scalars(select(table.c.view).where(table.c.parent == names.view))}
    children = sorted({ViewNames(names.schema, child).live.view for child in found})
    upcoming = {child: ViewNames(names.schema, child).next.view for child in children}
    made = {*conn.scalars(select(views.c.name).where(views.c.name.in_(upcoming.values())))}
    waiting = [child for child, name in upcoming.items() if name in made - found]
    if children:
        raise ViewInUseError(names.view, children=children, waiting=waiting)


def count_pending_below(conn: Connection, names: ViewNames, *, limit: int) -> int:
    """Return how many changes those have to take in that the view is built upon.

    Args:
        conn: A connection in a transaction.
        names: The view's.
        limit: How far to count in each log, for each of them.
    """
    views, table = materialized_views(names.schema), view_parents(names.schema)
    below = select(table.c.parent).where(table.c.view == names.view).cte("below", recursive=True)
    below = below.union(select(table.c.parent).join(below, table.c.view == below.c.parent))
    found = select(views.c.consumer, views.c.sources).join(below, below.c.parent == views.c.name)
    counts = [
        _count_pending(conn, names.schema, consumer, sources, limit)
        for consumer, sources in conn.execute(found).all()
    ]
    return sum(counts)


def _count_pending(
    conn: Connection, schema: str, consumer: str, sources: dict[str, Any], limit: int
) -> int:
    logs = [source["log"] for source in sources.values()]

    def is_pending(xid: ColumnElement[Xid]) -> ColumnElement[bool]:
        return pending_for(consumer, xid, schema=schema)

    return conn.execute(select(count_pending(schema, logs, is_pending, limit=limit))).scalar_one()


def read_as_of(conn: Connection, names: ViewNames) -> AsOf | None:
    """Return up to where the view shows the tables; None if it, or one below it, is not filled."""
    states = _read_states(conn, names.schema, [names.view])
    return states.get(names.view)


def parents_of(names: ViewNames) -> ColumnElement[Any]:
    """Return an expression for the array of the views that a view is built upon."""
    table = view_parents(names.schema)
    found = select(table.c.parent).where(table.c.view == names.view).order_by(table.c.parent)
    return func.array(found.scalar_subquery(), type_=ARRAY(Text))


def noting_parents(
    conn: Connection, names: ViewNames, parents: Sequence[str], work: Callable[[], Report]
) -> Report:
    """Refresh a view, and write down up to where it shows the tables since.

    What it is built upon is looked at before: it may be newer by the time it is read, but no
    older.

    Args:
        conn: A connection in a transaction.
        names: The view's.
        parents: What it is built upon, see `parents_of`.
        work: What refreshes it.

    Raises:
        ViewNotPopulatedError: Something that it is built upon is not filled.
    """
    table = view_parents(names.schema)
    own = table.c.view == names.view
    states = _read_states(conn, names.schema, parents) if parents else {}
    for parent in parents:
        if parent not in states:
            raise ViewNotPopulatedError(parent)
    report = work()
    if report is None:
        return report
    for parent, state in states.items():
        # Whoever looked earlier and waited for the lock does not put it back.
        known_xmax = func.pg_snapshot_xmax(table.c.snapshot, type_=Xid8)
        newer = table.c.snapshot.is_(None) | (known_xmax <= literal(state.snapshot.xmax, Xid8))
        conn.execute(
            update(table)
            .where(own, table.c.parent == parent, newer)
            .values(snapshot=state.snapshot, as_of=state.at)
        )
    return report


def _read_states(conn: Connection, schema: str, views: Iterable[str]) -> dict[str, AsOf]:
    """Return up to where each view shows the tables, in one statement; not those not filled."""
    catalogue, consumers = materialized_views(schema), change_log_tables(schema).consumers
    table = view_parents(schema)
    rows = conn.execute(
        select(
            catalogue.c.name,
            consumers.c.populated,
            consumers.c.snapshot.label("own"),
            consumers.c.advanced_at,
            table.c.parent,
            table.c.snapshot,
            table.c.as_of,
        )
        .join(consumers, consumers.c.name == catalogue.c.consumer)
        .outerjoin(table, table.c.view == catalogue.c.name)
        .where(catalogue.c.name.in_([*views]))
    )
    of_each: dict[str, list[Any]] = {}
    for row in rows:
        of_each.setdefault(row.name, []).append(row)
    return {name: state for name, found in of_each.items() if (state := _state(found)) is not None}


def _state(rows: list[Any]) -> AsOf | None:
    own = rows[0]
    parents = [row for row in rows if row.parent is not None]
    if not own.populated or any(row.snapshot is None for row in parents):
        return None
    below = [AsOf(row.snapshot, row.as_of) for row in parents]
    return earliest([AsOf(own.own, own.advanced_at), *below])
