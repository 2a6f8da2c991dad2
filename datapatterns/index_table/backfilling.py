"""Fill an index with the rows that were there before it, while writers go on.

Of an index that writers keep themselves, a chunk locks its rows FOR SHARE until the caller commits:
a writer either comes before and is seen, or waits, and then its trigger sees the index row. Without
the lock, a row deleted in between would leave an index row behind. The price: each row of the base
table is locked once, which writes its page.

Of an index that is kept behind its writers, a chunk locks no rows. It holds the index's consumer
instead: whatever isn't in its snapshot is still to be taken in, and will be, by a later statement.
"""

from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from datapatterns.errors import IndexMissingError
from datapatterns.failpoints import failpoint
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import BackfillProgress
from datapatterns.index_table.following import hold
from datapatterns.index_table.maintenance import entry_name, view_name
from datapatterns.index_table.schema import entry_table, index_tables
from datapatterns.index_table.statements import run
from datapatterns.index_table.states import require_kept, require_read_committed

# Names that no column and no table of an application has: a CTE would hide such a table.
_ORDINAL = "datapatterns_ordinal"


def backfill_chunk(
    conn: Connection, definition: IndexDefinition, *, limit: int
) -> BackfillProgress:
    """Index the next rows of the base table; call it in a transaction of its own until done.

    Takes up where the last committed chunk ended, in whatever process that ran. Waits for at
    most one row at a time, holding no other: writers and chunks don't deadlock.

    Args:
        conn: A READ COMMITTED transaction that has locked no row of the base table; for an index
            that is kept behind its writers, one that has written nothing.
        definition: The index.
        limit: At most how many rows to index.

    Raises:
        IndexDetachedError: Its triggers don't fire for every writer.
        IsolationLevelError: The transaction isn't READ COMMITTED.
        TransactionInUseError: The index is kept behind its writers, and the transaction has
            written something.
        ValueError: ``limit`` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: a chunk has at least one row")
    require_read_committed(conn)
    status = require_kept(conn, definition)
    is_behind = definition.mode == "async"
    if is_behind:
        hold(conn, definition)
    backfills = index_tables(definition.schema).index_backfill
    this_index = backfills.c.index_id == status.index_id
    # Two processes that build one index take turns.
    so_far = conn.execute(
        select(backfills.c.rows_done, backfills.c.done, cast(backfills.c.after_pk, Text))
        .where(this_index)
        .with_for_update()
    ).one_or_none()
    if so_far is None:
        raise IndexMissingError(definition.name)
    rows_done, done, after_pk = so_far
    if done:
        return BackfillProgress(rows_done=rows_done, done=True)

    due = _due(definition, after_pk, limit)
    if is_behind:
        found = conn.execute(_index_unlocked_chunk(definition, due)).one()
    else:
        conn.execute(due.limit(1).with_for_update(read=True))
        found = conn.execute(_index_whole_chunk(definition, after_pk, limit)).one()
        if not found.is_whole:
            found = conn.execute(_index_chunk(definition, due, limit)).one()
    failpoint("index.chunk-indexed")
    progress = BackfillProgress(
        rows_done=rows_done + found.indexed,
        done=found.indexed == found.due < limit,
    )
    conn.execute(
        update(backfills)
        .where(this_index)
        .values(
            rows_done=progress.rows_done,
            done=progress.done,
            # As text: JSON in Python would round a numeric key.
            after_pk=cast(literal(found.last_pk or after_pk, Text), JSONB),
        )
    )
    if progress.done:
        run(conn, f"ANALYZE {entry_name(definition)}")
    return progress


def _due(definition: IndexDefinition, after_pk: str | None, limit: int) -> Select[Any]:
    base = definition.base
    primary_key = list(base.primary_key.columns)
    projection = definition.projection(base)
    return (
        select(*(own.label(name) for name, own in projection.items()))
        .where(definition.is_indexed(base), _beyond(definition, after_pk))
        .order_by(*primary_key)
        .limit(limit)
    )


def _beyond(definition: IndexDefinition, after_pk: str | None) -> ColumnElement[bool]:
    if after_pk is None:
        return true()
    primary_key = list(definition.base.primary_key.columns)
    last = func.jsonb_populate_record(
        literal_column(f"NULL::{view_name(definition)}"),
        cast(bindparam("after_pk", after_pk, Text), JSONB),
    ).table_valued(*(column(own.name, own.type) for own in primary_key))
    return tuple_(*primary_key) > tuple_(
        *(select(last.c[own.name]).scalar_subquery() for own in primary_key)
    )


def _index_unlocked_chunk(definition: IndexDefinition, chunk: Select[Any]) -> Select[Any]:
    due = chunk.add_columns(
        func.row_number().over(order_by=definition.base.primary_key.columns).label(_ORDINAL)
    ).cte("datapatterns_due")
    into = upsert(entry_table(definition)).from_select(
        definition.columns, select(*(due.c[name] for name in definition.columns))
    )
    # What is there already was taken in from an older snapshot.
    inserted = into.on_conflict_do_update(
        index_elements=[*definition.entry_identity],
        set_={name: into.excluded[name] for name in definition.columns},
    ).cte("inserted")
    counted = select(func.count()).select_from(due).scalar_subquery()
    return select(
        counted.label("due"),
        counted.label("indexed"),
        _last_primary_key(definition, due).label("last_pk"),
    ).add_cte(inserted)


def _index_whole_chunk(
    definition: IndexDefinition, after_pk: str | None, limit: int
) -> Select[Any]:
    """Index the rows that are due if nobody holds one of them, or has changed which there are.

    Which of them can be had is not asked of each then: that takes longer than all the rest.
    """
    base = definition.base
    primary_key = list(base.primary_key.columns)
    is_due = and_(definition.is_indexed(base), _beyond(definition, after_pk))
    due = (
        select(*(own.label(own.name) for own in primary_key))
        .where(is_due)
        .order_by(*primary_key)
        .limit(limit)
        .cte("datapatterns_due")
    )
    in_reverse = [due.c[name].desc() for name in definition.primary_key]
    last = select(due).order_by(*in_reverse).limit(1).cte("datapatterns_last")
    # Up to the last one, not so many: a row from behind it would stand in for one that was skipped.
    until = select(*(last.c[name] for name in definition.primary_key)).scalar_subquery()
    locked = (
        select(*(own.label(name) for name, own in definition.projection(base).items()))
        .where(is_due, tuple_(*primary_key) <= until)
        .with_for_update(read=True, skip_locked=True)
        .cte("locked")
    )
    counted = select(
        select(func.count()).select_from(due).scalar_subquery().label("due"),
        select(func.count()).select_from(locked).scalar_subquery().label("locked"),
    ).cte("counted")
    # In the index's order: a page of it that several of the rows go to is looked for once. Rows
    # behind a gap are no less right: they are locked, too, and are only not counted yet.
    ready = select(*(locked.c[name] for name in definition.columns)).order_by(
        *(locked.c[name] for name in definition.entry_identity)
    )
    inserted = (
        upsert(entry_table(definition))
        .from_select(definition.columns, ready)
        .on_conflict_do_nothing()
        .cte("inserted")
    )
    return select(
        (counted.c.locked == counted.c.due).label("is_whole"),
        counted.c.due,
        counted.c.locked.label("indexed"),
        select(_as_json(definition, last)).scalar_subquery().label("last_pk"),
    ).add_cte(inserted)


def _index_chunk(definition: IndexDefinition, chunk: Select[Any], limit: int) -> Select[Any]:
    primary_key = definition.primary_key
    due = chunk.add_columns(
        func.row_number().over(order_by=definition.base.primary_key.columns).label(_ORDINAL)
    ).cte("datapatterns_due")
    # Waiting for a row while others are locked would deadlock with writers that change rows in
    # another order. So rows that somebody holds are skipped, and the chunk ends before the
    # first of them; the next one begins with waiting for it. Rows that are gone look the same.
    locked = chunk.with_for_update(read=True, skip_locked=True).cte("locked")
    same_row = and_(*(due.c[name] == locked.c[name] for name in primary_key))
    first_gap = (
        select(func.coalesce(func.min(due.c[_ORDINAL]), limit + 1))
        .select_from(due.outerjoin(locked, same_row))
        .where(locked.c[primary_key[0]].is_(None))
        .scalar_subquery()
    )
    ready = (
        select(due.c[_ORDINAL], *(locked.c[name] for name in definition.columns))
        .select_from(due.join(locked, same_row))
        .where(due.c[_ORDINAL] < first_gap)
        .cte("ready")
    )
    # An index row that is there already was written by a trigger, so it is newer or the same.
    inserted = (
        upsert(entry_table(definition))
        .from_select(definition.columns, select(*(ready.c[name] for name in definition.columns)))
        .on_conflict_do_nothing()
        .cte("inserted")
    )
    return select(
        select(func.count()).select_from(due).scalar_subquery().label("due"),
        select(func.count()).select_from(ready).scalar_subquery().label("indexed"),
        _last_primary_key(definition, ready).label("last_pk"),
    ).add_cte(inserted)


def _last_primary_key(definition: IndexDefinition, ready: CTE) -> ColumnElement[str]:
    last = select(_as_json(definition, ready)).order_by(ready.c[_ORDINAL].desc())
    return last.limit(1).scalar_subquery()


def _as_json(definition: IndexDefinition, rows: CTE) -> ColumnElement[str]:
    named = [
        part
        for name in definition.primary_key
        for part in (cast(literal(name), Text), rows.c[name])
    ]
    return cast(func.jsonb_build_object(*named), Text)
