"""Difference rebuild: run the query, write only the rows that differ.

Exact for whatever gives the same rows on the same tables: rows are compared as a multiset, so
that neither a key nor the absence of NULLs is asked for. Readers never wait, and an unchanged row
costs no write.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    TableClause,
    Text,
    any_,
    cast,
    column,
    delete,
    func,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import insert

from datapatterns.change_log import current_snapshot
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.relations import stored_of


def _all_rows(_: TableClause) -> Sequence[ColumnElement[bool]]:
    return [true()]


def rebuild(
    fresh: Select[Any] | CompoundSelect[*tuple[Any, ...]],
    names: ViewNames,
    columns: Sequence[str],
    *,
    compared_as_text: Sequence[str] = (),
    only: Callable[[TableClause], Sequence[ColumnElement[bool]]] = _all_rows,
) -> Select[Any]:
    """Return the statement that makes the stored rows those of ``fresh``.

    It answers with one row: the snapshot it ran in, and how many rows it deleted and inserted.

    Args:
        fresh: What shall be stored, its columns named and ordered as ``columns``.
        names: The view's.
        columns: All columns of the stored table.
        compared_as_text: Those whose equal values may differ, as 1.0 and 1.00 do.
        only: Which stored rows ``fresh`` stands for: conditions of which at most one holds for
            a row. All rows, unless given.
    """
    stored = stored_of(names, columns)
    now = fresh.cte("fresh").prefix_with("MATERIALIZED")
    # Grouping calls NULLs equal and hashes; a join that calls them equal does neither.
    both = union_all(
        *(
            select(*stored.c, literal_column(f"{names.stored}.ctid").label("held")).where(way)
            for way in only(stored)
        ),
        select(*now.c, literal_column("NULL::tid")),
    ).subquery("both_sides")
    values = [both.c[name] for name in columns]
    images = [cast(both.c[name], Text) for name in compared_as_text]
    held, wanted = func.count(both.c.held), func.count() - func.count(both.c.held)
    difference = (
        select(
            *values,
            func.array_agg(both.c.held).filter(both.c.held.is_not(None)).label("held_rows"),
            wanted.label("wanted"),
            held.label("held"),
        )
        .group_by(*values, *images)
        .having(held != wanted)
        .cte("difference")
        .prefix_with("MATERIALIZED")
    )
    # Both deletion and insertion see the rows as they were; the insertion still has to come
    # last, or it would meet the unique key of a row that is about to go.
    surplus: ColumnElement[Any] = literal_column(
        "unnest(difference.held_rows[difference.wanted + 1 :])"
    )
    rows = func.array(select(surplus).select_from(difference).scalar_subquery())
    gone = (
        delete(stored)
        .where(column("ctid") == any_(rows))
        .returning(literal_column("1").label("one"))
        .cte("gone")
    )
    deleted = select(func.count()).select_from(gone).scalar_subquery()
    copies = func.generate_series(1, difference.c.wanted - difference.c.held)
    inserted = (
        insert(stored)
        .from_select(
            list(columns),
            select(*(difference.c[name] for name in columns))
            .select_from(difference)
            .join(copies.table_valued("copy").lateral("copies"), true())
            .where(deleted >= 0),
        )
        .returning(literal_column("1").label("one"))
        .cte("inserted")
    )
    return select(
        current_snapshot.label("snapshot"),
        deleted.label("deleted"),
        select(func.count()).select_from(inserted).scalar_subquery().label("inserted"),
    )
