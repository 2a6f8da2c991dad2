"""What a statement that writes a broadcast table may say, so that all copies get the same."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

from sqlalchemy import Delete, Insert, Table, Update
from sqlalchemy.dialects.postgresql.dml import OnConflictDoUpdate
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import BroadcastWriteError
from datapatterns.sharding.routing.early_conditions import locks_rows_below
from datapatterns.sharding.routing.footprint import Footprint, refuse_change, refuse_text
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.routing.placements import Placements

Write: TypeAlias = Insert | Update | Delete


def broadcast_target(statement: Write, placements: Placements) -> Table | None:
    """Return the broadcast table that ``statement`` writes; None if it writes another."""
    target = statement.table
    if isinstance(target, Table) and placements.is_broadcast(target):
        return target
    return None


def locks_copies(statement: SelectBase, footprint: Footprint) -> bool:
    """Return whether a SELECT locks rows of broadcast tables, which takes the lock of all copies.

    Raises:
        BroadcastWriteError: It locks rows of sharded tables as well, or some in a subquery.
    """
    if footprint.broadcast and not footprint.plain and locks_rows_below(statement):
        raise BroadcastWriteError(
            min(table.name for table in footprint.broadcast),
            "FOR UPDATE in a subquery would lock the copy of one shard",
            "lock it in a statement of its own",
        )
    locking = getattr(statement, "_for_update_arg", None)
    if locking is None or locking.read or not footprint.broadcast:
        return False
    named = {getattr(part, "table", part) for part in locking.of or ()}
    if named and not named & footprint.broadcast:
        return False
    if footprint.blocks:
        raise BroadcastWriteError(
            min(table.name for table in footprint.broadcast),
            "FOR UPDATE would lock the copy of one shard",
            "name what to lock with with_for_update(of=...), or lock it in a statement of its own",
        )
    return True


def check_write(
    statement: Write, parameters: Sequence[Parameters], table: Table, placements: Placements
) -> frozenset[Table]:
    """Return the broadcast tables that ``statement`` is about, after a look at all of it.

    Raises:
        BroadcastWriteError: It reads what only one shard has, or changes a primary key.
        UnroutableStatementError: It contains SQL text, or another write.
    """
    if statement._independent_ctes:  # noqa: SLF001 -- there is no public name
        raise BroadcastWriteError(
            table.name, "the statement has a WITH", "run its parts one by one"
        )
    found = {_plain(table)}
    values = [value for row in parameters for value in row.values()]
    conflict = getattr(statement, "_post_values_clause", None)
    for root in (statement, conflict, *values):
        if isinstance(root, ClauseElement):
            found |= _tables_in(root, table, placements)
    _refuse_new_primary_key(statement, parameters, table)
    return frozenset(found)


def _tables_in(root: ClauseElement, table: Table, placements: Placements) -> set[Table]:
    found = set()
    for part in visitors.iterate(root):
        refuse_text(cast("ClauseElement", part))
        if part is not root:
            refuse_change(cast("ClauseElement", part))
        if isinstance(part, Table):
            if not placements.is_broadcast(part):
                raise BroadcastWriteError(
                    table.name,
                    f"the statement reads table {part.name!r}, of which no shard has all",
                    "read it before, and write values",
                )
            found.add(_plain(part))
    return found


def _refuse_new_primary_key(
    statement: Write, parameters: Sequence[Parameters], table: Table
) -> None:
    assigned: Iterable[Any]
    if isinstance(statement, Update):
        by_row = () if statement.whereclause is None else parameters
        assigned = [*(statement._values or {}), *(name for row in by_row for name in row)]  # noqa: SLF001
    else:
        conflict = getattr(statement, "_post_values_clause", None)
        assigned = conflict.update_values_to_set if isinstance(conflict, OnConflictDoUpdate) else ()
    primary = {column.key for column in table.primary_key.columns}
    if primary.intersection(str(getattr(column, "key", column)) for column in assigned):
        raise BroadcastWriteError(
            table.name,
            "its primary key would change, by which copies are told apart",
            "delete the row and insert it again",
        )


def _plain(table: Table) -> Table:
    return table.metadata.tables[table.key]
