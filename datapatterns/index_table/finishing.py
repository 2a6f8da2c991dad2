"""How the building of an index ends: it is read from then on, or has failed, and why is written."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Text,
    and_,
    cast,
    delete,
    func,
    insert,
    literal,
    null,
    select,
    update,
)

from datapatterns.errors import IndexDiffersError, IndexFailedError, IndexNotReadyError
from datapatterns.failpoints import failpoint
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import IndexConflict, VerifyReport
from datapatterns.index_table.following import hold, rebuild, take_in
from datapatterns.index_table.images import same_identity
from datapatterns.index_table.maintenance import entry_name
from datapatterns.index_table.schema import IndexTables, entry_table, guard_view, index_tables
from datapatterns.index_table.statements import run, table_name
from datapatterns.index_table.states import (
    index_status,
    require_kept,
    require_read_committed,
)
from datapatterns.index_table.verifying import verify_index

CONFLICTS_MAX: Final = 1000
"""At most how many conflicts are written down."""


def begin_verifying(conn: Connection, definition: IndexDefinition) -> None:
    """Say that all rows are indexed and are being compared; commit it before `finish_index`.

    Raises:
        IndexNotReadyError: Its backfill isn't done.
        IndexFailedError: It has failed; retry it.
    """
    status = require_kept(conn, definition)
    tables = index_tables(definition.schema)
    backfills = tables.index_backfill
    if status.state == "failed":
        raise IndexFailedError(definition.name, failure=_failure(conn, tables, status.index_id))
    done = conn.scalar(select(backfills.c.done).where(backfills.c.index_id == status.index_id))
    if not done:
        raise IndexNotReadyError(definition.name, state=status.state)
    _become(conn, tables, status.index_id, "verifying")


def finish_index(conn: Connection, definition: IndexDefinition) -> VerifyReport:
    """Compare it with its table; let it be read once the caller commits, or say why it has failed.

    Returns:
        What was found; unless it is clean, the index has failed.

    Raises:
        IndexBehindError: It has to read all rows anew first; do the same again.
        IsolationLevelError: The transaction isn't READ COMMITTED.
    """
    require_read_committed(conn)
    status = require_kept(conn, definition)
    if definition.mode == "async" and (consumer := hold(conn, definition)) is not None:
        take_in(conn, definition, consumer)
    tables = index_tables(definition.schema)
    report = verify_index(conn, definition)
    failpoint("index.compared")
    if report.clean:
        _become(conn, tables, status.index_id, "ready")
        return report
    conflicts = _write_conflicts_down(conn, definition, tables, status.index_id)
    failure = (
        f"{report.missing} rows without index row, {report.orphaned} index rows without row,"
        f" {report.different} index rows that differ from their row"
    )
    if conflicts:
        more = " or more" if conflicts == CONFLICTS_MAX else ""
        failure += f"; {conflicts}{more} rows have a key that another row has"
    _become(conn, tables, status.index_id, "failed", failure=failure)
    return report


def activate_index(conn: Connection, definition: IndexDefinition) -> VerifyReport:
    """Let an index be read once the caller commits, if it agrees with its table.

    If it doesn't, nothing is written: the error ends the caller's transaction, and the index stays
    what it was. That it failed is written by `finish_index`, whose caller commits that.

    Raises:
        IndexNotReadyError: Its backfill isn't done.
        IndexDiffersError: It doesn't agree; in a unique index, two rows may have one key.
        IsolationLevelError: The transaction isn't READ COMMITTED.
    """
    require_read_committed(conn)
    status = require_kept(conn, definition)
    if definition.mode == "async" and (consumer := hold(conn, definition)) is not None:
        take_in(conn, definition, consumer)
    tables = index_tables(definition.schema)
    backfills = tables.index_backfill
    done = conn.scalar(select(backfills.c.done).where(backfills.c.index_id == status.index_id))
    if not done:
        raise IndexNotReadyError(definition.name, state=status.state)
    report = verify_index(conn, definition)
    if not report.clean:
        raise _differs(report)
    _become(conn, tables, status.index_id, "ready")
    return report


def retry_index(conn: Connection, definition: IndexDefinition) -> bool:
    """Let an index that has failed be built again, once the caller commits; False if it hasn't.

    What is in it and right is kept, and found again by the next backfill. Writers of the table
    wait if anything in it is wrong, which nobody but somebody writing to it can have caused.

    Raises:
        IsolationLevelError: The transaction isn't READ COMMITTED.
    """
    require_read_committed(conn)
    status = index_status(conn, definition)
    if status.state != "failed":
        return False
    tables = index_tables(definition.schema)
    if definition.mode == "async":
        if (consumer := hold(conn, definition)) is not None:
            take_in(conn, definition, consumer)
            rebuild(conn, definition)
    else:
        report = verify_index(conn, definition)
        if report.orphaned or report.different:
            # The base table first, as in a TRUNCATE and its trigger.
            run(
                conn,
                f"LOCK TABLE {table_name(definition.base)} IN SHARE ROW EXCLUSIVE MODE;\n"
                f"TRUNCATE {entry_name(definition)}",
            )
        backfills = tables.index_backfill
        conn.execute(
            update(backfills)
            .where(backfills.c.index_id == status.index_id)
            .values(after_pk=null(), rows_done=0, done=False)
        )
    _become(conn, tables, status.index_id, "building")
    return True


def read_conflicts(conn: Connection, definition: IndexDefinition) -> list[IndexConflict]:
    """Return the rows of a unique index that has failed whose key another row had."""
    status = index_status(conn, definition)
    found = index_tables(definition.schema).index_conflict
    rows = conn.execute(
        select(found).where(found.c.index_id == status.index_id).order_by(found.c.number)
    )
    key, primary_key = tuple(definition.key), definition.primary_key
    return [
        IndexConflict(
            _ordered(row.key, key),
            _ordered(row.base_pk, primary_key),
            _ordered(row.holder_pk, primary_key),
            row.found_at,
        )
        for row in rows
    ]


def _ordered(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    # jsonb sorts them by itself.
    return {name: values[name] for name in names}


def _failure(conn: Connection, tables: IndexTables, index_id: int) -> str:
    known = tables.index_table
    found = conn.scalar(select(known.c.failure).where(known.c.index_id == index_id))
    return str(found)


def _become(
    conn: Connection,
    tables: IndexTables,
    index_id: int,
    state: str,
    *,
    failure: str | None = None,
) -> None:
    known, conflicts = tables.index_table, tables.index_conflict
    conn.execute(
        update(known).where(known.c.index_id == index_id).values(state=state, failure=failure)
    )
    if failure is None:
        conn.execute(delete(conflicts).where(conflicts.c.index_id == index_id))


def _write_conflicts_down(
    conn: Connection, definition: IndexDefinition, tables: IndexTables, index_id: int
) -> int:
    """Write down which rows lack an index row because another one has their key; count them."""
    if not definition.unique:
        return 0
    entries, expected = entry_table(definition), guard_view(definition)
    holder = entry_table(definition).alias("holder")
    same_key = and_(*(holder.c[name] == expected.c[name] for name in definition.key))
    own = select(literal(1)).where(same_identity(definition, entries, expected)).exists()
    primary_key = definition.primary_key
    found = (
        select(
            literal(index_id),
            func.row_number().over(order_by=[expected.c[name] for name in primary_key]),
            _json(expected, tuple(definition.key)),
            _json(expected, primary_key),
            _json(holder, primary_key),
        )
        .select_from(expected.join(holder, same_key))
        .where(~own)
        .order_by(*(expected.c[name] for name in primary_key))
        .limit(CONFLICTS_MAX)
    )
    conflicts = tables.index_conflict
    names = ["index_id", "number", "key", "base_pk", "holder_pk"]
    conn.execute(insert(conflicts).from_select(names, found))
    own_conflicts = conflicts.c.index_id == index_id
    return conn.execute(
        select(func.count()).select_from(conflicts).where(own_conflicts)
    ).scalar_one()


def _json(rows: FromClause, names: Sequence[str]) -> ColumnElement[Mapping[str, Any]]:
    named = [part for name in names for part in (cast(literal(name), Text), rows.c[name])]
    return func.jsonb_build_object(*named)


def _differs(report: VerifyReport) -> IndexDiffersError:
    return IndexDiffersError(
        report.index,
        missing=report.missing,
        orphaned=report.orphaned,
        different=report.different,
    )
