"""Remove index rows that lead to no row, or to one with another key.

They cost a look-up each, never a wrong answer.
"""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    any_,
    delete,
    func,
    literal,
    literal_column,
    select,
)

from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import SweepReport
from datapatterns.index_table.following import hold, take_in
from datapatterns.index_table.images import same_identity
from datapatterns.index_table.maintenance import entry_name
from datapatterns.index_table.schema import entry_table, guard_view
from datapatterns.index_table.statements import run, table_name
from datapatterns.index_table.states import index_status, require_read_committed
from datapatterns.index_table.verifying import verify_index


def sweep_index(
    conn: Connection, definition: IndexDefinition, *, limit: int, dry_run: bool
) -> SweepReport:
    """Remove at most ``limit`` index rows without row; with ``dry_run`` only count them.

    If there are any in an index that its writers keep, these wait until the caller commits: a row
    that comes back would be taken for one that is gone. Those of an index that is kept behind
    its writers don't; what is pending for it is taken in first.

    Raises:
        IndexBehindError: With ``dry_run``: it has to read all rows anew first.
        IndexDetachedError: It was built on another table, in whose place this one is now.
        IsolationLevelError: The transaction isn't READ COMMITTED.
        TransactionInUseError: It is kept behind its writers, and the transaction has written.
    """
    require_read_committed(conn)
    if dry_run:
        return SweepReport(definition.name, verify_index(conn, definition).orphaned, removed=0)
    index_status(conn, definition)
    if definition.mode == "async":
        if (consumer := hold(conn, definition)) is not None:
            take_in(conn, definition, consumer)
    elif conn.execute(_orphans(definition).limit(1)).one_or_none() is None:
        return SweepReport(definition.name, orphaned=0, removed=0)
    else:
        # Looked at again behind the lock.
        run(conn, f"LOCK TABLE {table_name(definition.base)} IN SHARE ROW EXCLUSIVE MODE")
    entries = entry_table(definition)
    places = func.array(_orphans(definition).limit(limit).scalar_subquery())
    removed = conn.execute(delete(entries).where(_place(definition) == any_(places))).rowcount
    return SweepReport(definition.name, orphaned=removed, removed=removed)


def _orphans(definition: IndexDefinition) -> Select[Any]:
    entries, expected = entry_table(definition), guard_view(definition)
    has_row = select(literal(1)).where(same_identity(definition, entries, expected)).exists()
    return select(_place(definition)).select_from(entries).where(~has_row)


def _place(definition: IndexDefinition) -> ColumnElement[Any]:
    """Return where an index row lies."""
    return literal_column(f"{entry_name(definition)}.ctid")
