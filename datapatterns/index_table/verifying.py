"""Compare an index with its table, both ways; let it be read; mend it."""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import UserDefinedType

from datapatterns.errors import IndexDiffersError, IndexNotReadyError
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import IndexDifference, VerifyReport
from datapatterns.index_table.maintenance import enable_triggers
from datapatterns.index_table.schema import entry_table, guard_view, index_tables
from datapatterns.index_table.statements import run, table_name
from datapatterns.index_table.states import index_status, require_kept, require_read_committed

SAMPLES_MAX = 20
"""At most how many differences a report names."""


class _Record(UserDefinedType[Any]):
    """PostgreSQL's type of any row."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "record"


def verify_index(conn: Connection, definition: IndexDefinition) -> VerifyReport:
    """Compare all rows with all index rows in one snapshot; writers go on meanwhile."""
    index_status(conn, definition)
    found = conn.execute(_comparison(definition)).all()
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
    )


def activate_index(conn: Connection, definition: IndexDefinition) -> VerifyReport:
    """Let an index be read once the caller commits, if it agrees with its table.

    Raises:
        IndexNotReadyError: Its backfill isn't done.
        IndexDiffersError: It doesn't agree; in a unique index, two rows may have one key.
        IsolationLevelError: The transaction isn't READ COMMITTED.
    """
    require_read_committed(conn)
    status = require_kept(conn, definition)
    tables = index_tables(definition.schema)
    known, backfills = tables.index_table, tables.index_backfill
    done = conn.scalar(select(backfills.c.done).where(backfills.c.index_id == status.index_id))
    if not done:
        raise IndexNotReadyError(definition.name, state=status.state)
    report = verify_index(conn, definition)
    if not report.clean:
        raise _differs(report)
    conn.execute(update(known).where(known.c.index_id == status.index_id).values(state="ready"))
    return report


def repair_index(conn: Connection, definition: IndexDefinition) -> VerifyReport:
    """Make the index what its table says; return what is left, as `verify_index` would.

    Writers of the table wait until the caller commits; readers don't. What can be left are
    rows of a unique index whose key another row has.

    Raises:
        IsolationLevelError: The transaction isn't READ COMMITTED.
    """
    require_read_committed(conn)
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
            .where(_same_identity(definition, entries, expected), ~_differ(entries, expected))
            .exists()
        )
    )
    conn.execute(
        upsert(entries)
        .from_select(definition.columns, select(*expected.c))
        .on_conflict_do_nothing()
    )
    return verify_index(conn, definition)


def _comparison(definition: IndexDefinition) -> Select[Any]:
    entries, expected = entry_table(definition), guard_view(definition)
    row_key = definition.primary_key[0]
    # Neither side's identity has NULLs, so one column tells whether a side is there at all.
    no_entry, no_row = entries.c[row_key].is_(None), expected.c[row_key].is_(None)
    kind = case((no_entry, "missing"), (no_row, "orphaned"), else_="different").label("kind")
    differences = (
        select(
            kind,
            *(
                func.coalesce(expected.c[name], entries.c[name]).label(f"identity_{ordinal}")
                for ordinal, name in enumerate(definition.entry_identity)
            ),
        )
        .select_from(
            expected.outerjoin(entries, _same_identity(definition, entries, expected), full=True)
        )
        .where(or_(no_entry, no_row, _differ(entries, expected)))
        .cte("differences")
    )
    totals = select(
        select(func.count()).select_from(expected).scalar_subquery().label("rows"),
        *(
            func.count().filter(differences.c.kind == name).label(name)
            for name in ("missing", "orphaned", "different")
        ),
    ).subquery("totals")
    samples = select(differences).order_by(*differences.c).limit(SAMPLES_MAX).subquery("samples")
    return select(totals, samples).select_from(totals.outerjoin(samples, true()))


def _same_identity(
    definition: IndexDefinition, entries: FromClause, expected: FromClause
) -> ColumnElement[bool]:
    return and_(*(entries.c[name] == expected.c[name] for name in definition.entry_identity))


def _differ(entries: FromClause, expected: FromClause) -> ColumnElement[bool]:
    # Identity, not equality: 1.0 is not 1.00, and NULL is NULL.
    return _record(entries).op("OPERATOR(pg_catalog.*<>)", is_comparison=True)(_record(expected))


def _record(rows: FromClause) -> ColumnElement[Any]:
    # Cast, because PostgreSQL compares two ROW() column by column.
    return cast(func.row(*rows.c), _Record)


def _differs(report: VerifyReport) -> IndexDiffersError:
    return IndexDiffersError(
        report.index,
        missing=report.missing,
        orphaned=report.orphaned,
        different=report.different,
    )
