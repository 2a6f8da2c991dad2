"""Compare an index with its table, both ways; let it be read; mend it."""

from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    case,
    delete,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from datapatterns.errors import IndexBehindError
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import IndexDifference, VerifyReport
from datapatterns.index_table.following import follow_anew
from datapatterns.index_table.images import differ, same_identity
from datapatterns.index_table.lagging import (
    followed_log,
    is_pending,
    is_truncation_pending,
    must_rebuild,
)
from datapatterns.index_table.maintenance import enable_triggers
from datapatterns.index_table.schema import entry_table, guard_view
from datapatterns.index_table.statements import run, table_name
from datapatterns.index_table.states import index_status, require_read_committed

SAMPLES_MAX = 20
"""At most how many differences a report names."""


def verify_index(conn: Connection, definition: IndexDefinition) -> VerifyReport:
    """Compare all rows with all index rows in one snapshot; writers go on meanwhile.

    Of an index that is kept behind its writers, rows are left out whose changes are pending.

    Raises:
        IndexBehindError: It has to read all rows anew first.
    """
    index_status(conn, definition)
    log = followed_log(conn, definition) if definition.mode == "async" else None
    found = conn.execute(_comparison(definition, log)).all()
    if found[0].says_nothing:
        raise IndexBehindError(definition.name)
    names = definition.entry_identity
    samples = []
    for row in found:
        if row.kind is None:
            continue
        values = dict(zip(names, row[-len(names) :], strict=True))
        samples.append(
            IndexDifference(
                kind=row.kind,
                key=tuple(values[name] for name in definition.key),
                primary_key=tuple(values[name] for name in definition.primary_key),
            )
        )
    return VerifyReport(
        index=definition.name,
        rows=found[0].rows,
        missing=found[0].missing,
        orphaned=found[0].orphaned,
        different=found[0].different,
        samples=tuple(samples),
        pending=found[0].pending,
    )


def repair_index(conn: Connection, definition: IndexDefinition) -> VerifyReport:
    """Make the index what its table says; return what is left, as `verify_index` would.

    Writers of the table wait until the caller commits; readers don't. What can be left are
    rows of a unique index whose key another row has.

    Raises:
        IsolationLevelError: The transaction isn't READ COMMITTED.
    """
    require_read_committed(conn)
    if definition.mode == "async":
        follow_anew(conn, definition)
        return verify_index(conn, definition)
    kept = index_status(conn, definition).kept
    base = table_name(definition.base)
    # Nothing may be in flight: its index rows can't be seen yet.
    run(conn, f"LOCK TABLE {base} IN SHARE ROW EXCLUSIVE MODE")
    if not kept:
        run(conn, enable_triggers(definition, on_table=base))
    entries, expected = entry_table(definition), guard_view(definition)
    conn.execute(
        delete(entries).where(
            ~select(literal(1))
            .select_from(expected)
            .where(same_identity(definition, entries, expected), ~differ(entries, expected))
            .exists()
        )
    )
    conn.execute(
        upsert(entries)
        .from_select(definition.columns, select(*expected.c))
        .on_conflict_do_nothing()
    )
    return verify_index(conn, definition)


def _comparison(definition: IndexDefinition, log: FromClause | None) -> Select[Any]:
    entries, expected = entry_table(definition), guard_view(definition)
    row_key = definition.primary_key[0]
    # Neither side's identity has NULLs, so one column tells whether a side is there at all.
    no_entry, no_row = entries.c[row_key].is_(None), expected.c[row_key].is_(None)
    kind = case((no_entry, "missing"), (no_row, "orphaned"), else_="different").label("kind")
    found = (
        select(
            kind,
            *(
                func.coalesce(expected.c[name], entries.c[name]).label(f"identity_{ordinal}")
                for ordinal, name in enumerate(definition.entry_identity)
            ),
        )
        .select_from(
            expected.outerjoin(entries, same_identity(definition, entries, expected), full=True)
        )
        .where(or_(no_entry, no_row, differ(entries, expected)))
    )
    pending: ColumnElement[int] = literal(0)
    says_nothing: ColumnElement[bool] = literal(value=False)
    if log is not None:
        changed = _pending(definition, log)
        own = [
            func.coalesce(expected.c[name], entries.c[name]) == changed.c[name]
            for name in definition.primary_key
        ]
        found = found.where(~select(literal(1)).select_from(changed).where(*own).exists())
        pending = select(func.count()).select_from(changed).scalar_subquery()
        says_nothing = or_(must_rebuild(definition), is_truncation_pending(definition, log))
    differences = found.cte("differences")
    totals = select(
        select(func.count()).select_from(expected).scalar_subquery().label("rows"),
        pending.label("pending"),
        says_nothing.label("says_nothing"),
        *(
            func.count().filter(differences.c.kind == name).label(name)
            for name in ("missing", "orphaned", "different")
        ),
    ).subquery("totals")
    samples = select(differences).order_by(*differences.c).limit(SAMPLES_MAX).subquery("samples")
    return select(totals, samples).select_from(totals.outerjoin(samples, true()))


def _pending(definition: IndexDefinition, log: FromClause) -> CTE:
    own = [log.c[name] for name in definition.primary_key]
    named = is_pending(definition, log) & (log.c.change_sign != 0)
    return select(*own).where(named).distinct().cte("pending").prefix_with("MATERIALIZED")
