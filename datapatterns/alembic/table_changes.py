"""What the same migration does to tables, as far as it matters to views on them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from alembic.operations.ops import (
    AddColumnOp,
    AlterColumnOp,
    CreateTableOp,
    DropColumnOp,
    DropTableOp,
    MigrateOperation,
    ModifyTableOps,
)
from psycopg import sql

Place: TypeAlias = tuple[str, str]
"""A table: its schema and its name."""


@dataclass(slots=True)
class TableChanges:
    """What becomes of tables and columns.

    Attributes:
        default_schema: Where tables are that have no schema.
        new_tables: Tables that are created.
        new_columns: Columns that are added, and the tables they are added to.
        gone_tables: Tables that are dropped.
        blocked: Columns that no view may read while the migration runs.
        unsettled: Columns of which the database says nothing about what they will be.
    """

    default_schema: str
    new_tables: set[Place] = field(default_factory=set)
    new_columns: set[tuple[Place, str]] = field(default_factory=set)
    gone_tables: set[Place] = field(default_factory=set)
    blocked: set[tuple[Place, str]] = field(default_factory=set)
    unsettled: set[tuple[Place, str]] = field(default_factory=set)

    def place(self, schema: str | None, table: str) -> Place:
        """Return the place of a table that may have no schema."""
        return (schema or self.default_schema, table)

    def block(self, read: Mapping[str, Iterable[str]]) -> bool:
        """Return whether a view stands in the way that reads these columns of each table.

        Args:
            read: By the table's name with its schema, quoted.
        """
        gone = {sql.Identifier(*place).as_string(None) for place in self.gone_tables}
        if gone.intersection(read):
            return True
        return any(
            column in read.get(sql.Identifier(*place).as_string(None), ())
            for place, column in self.blocked
        )

    def add_to(self, tables: Iterable[Place]) -> bool:
        """Return whether one of the tables is created, or gets a column."""
        grown = self.new_tables | {place for place, _ in self.new_columns}
        return not grown.isdisjoint(tables)


def table_changes(operations: Iterable[MigrateOperation], default_schema: str) -> TableChanges:
    """Return what ``operations`` do to tables."""
    found = TableChanges(default_schema)
    for operation in operations:
        match operation:
            case CreateTableOp():
                found.new_tables.add(found.place(operation.schema, operation.table_name))
            case DropTableOp():
                found.gone_tables.add(found.place(operation.schema, operation.table_name))
            case ModifyTableOps():
                place = found.place(operation.schema, operation.table_name)
                for change in operation.ops:
                    _note_column(found, place, change)
            case _:
                pass  # it concerns no columns
    return found


def _note_column(found: TableChanges, place: Place, change: MigrateOperation) -> None:
    match change:
        case AddColumnOp():
            found.new_columns.add((place, change.column.name))
            found.unsettled.add((place, change.column.name))
        case DropColumnOp():
            found.blocked.add((place, change.column_name))
        case AlterColumnOp():
            found.unsettled.add((place, change.column_name))
            if change.modify_type is not None:
                found.blocked.add((place, change.column_name))
        case _:
            pass  # such as an index
