"""What migrations do with index tables; each operation has all in it that it needs."""

from dataclasses import dataclass
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Connection, inspect

from datapatterns.errors import IndexMigrationError
from datapatterns.index_table.blueprint import IndexBlueprint, definition_from
from datapatterns.index_table.creating import create_index, drop_index
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema


@Operations.register_operation("create_index_table")
@dataclass
class CreateIndexTableOp(MigrateOperation):
    """Create an index; rows from before come after the migration has been committed."""

    name: str
    schema: str
    blueprint: IndexBlueprint

    @classmethod
    def create_index_table(
        cls,
        operations: Operations,
        name: str,
        *,
        blueprint: "IndexBlueprint",
        schema: str = DEFAULT_SCHEMA,
    ) -> None:
        """Create an index that every writer keeps from now on, and nobody reads yet."""
        operations.invoke(cls(name, schema, blueprint))

    def reverse(self) -> "DropIndexTableOp":
        """Return the operation that undoes this one."""
        return DropIndexTableOp(self.name, self.schema, self.blueprint)

    def to_diff_tuple(self) -> tuple[str, str, str]:
        """Return it as ``alembic check`` shows it."""
        return ("add_index_table", self.schema, self.name)


@Operations.register_operation("drop_index_table")
@dataclass
class DropIndexTableOp(MigrateOperation):
    """Drop an index with its triggers."""

    name: str
    schema: str
    blueprint: IndexBlueprint | None = None

    @classmethod
    def drop_index_table(
        cls,
        operations: Operations,
        name: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        blueprint: "IndexBlueprint | None" = None,
    ) -> None:
        """Drop an index; ``blueprint`` is what it was, for the way back."""
        operations.invoke(cls(name, schema, blueprint))

    def reverse(self) -> CreateIndexTableOp:
        """Return the operation that undoes this one.

        Raises:
            IndexMigrationError: What the index was is not known.
        """
        if self.blueprint is None:
            raise IndexMigrationError(
                self.name, "nobody has said what it was; give drop_index_table(blueprint=)"
            )
        return CreateIndexTableOp(self.name, self.schema, self.blueprint)

    def to_diff_tuple(self) -> tuple[str, str, str]:
        """Return it as ``alembic check`` shows it."""
        return ("remove_index_table", self.schema, self.name)


@Operations.implementation_for(CreateIndexTableOp)
def _create(operations: Operations, operation: CreateIndexTableOp) -> None:
    conn = _prepared(operations, operation)
    create_index(
        conn, definition_from(operation.name, operation.blueprint, schema=operation.schema)
    )


@Operations.implementation_for(DropIndexTableOp)
def _drop(operations: Operations, operation: DropIndexTableOp) -> None:
    drop_index(_prepared(operations, operation), operation.name, schema=operation.schema)


def _prepared(operations: Operations, operation: Any) -> Connection:  # noqa: ANN401 -- one of ours
    schema = checked_schema(operation.schema)
    if operations.migration_context.as_sql:
        raise IndexMigrationError(
            operation.name,
            "the server is asked about its table, so it cannot be written as SQL; run the"
            " migration without --sql",
        )
    conn = operations.get_bind()
    if not inspect(conn).has_table("index_table", schema=schema):
        raise IndexMigrationError(
            operation.name,
            f"the library's tables are not in schema {schema!r}; run datapatterns migrate upgrade"
            " before, or name our newest revision in depends_on",
        )
    return conn
