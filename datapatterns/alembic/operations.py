"""What migrations do with views; each operation has all in it that it needs.

Nothing here looks at the application's declarations: a migration does in a year what it does
today.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Connection

from datapatterns.errors import ViewDefinitionError, ViewMigrationError
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.creating import create_from_blueprint, drop_view
from datapatterns.materialized_view.names import ViewNames, view_names
from datapatterns.materialized_view.records import has_catalogue
from datapatterns.materialized_view.replacing import replace_view
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema

_OTHER_COLUMNS: Final = (
    "this revision was written for columns as they were then; undo it, bring the database to the"
    " revision before, and generate it anew: the view will be kept in another way"
)


@Operations.register_operation("create_materialized_view")
@dataclass
class CreateMaterializedViewOp(MigrateOperation):
    """Create a view, empty; it is populated after the migration has been committed."""

    name: str
    schema: str
    blueprint: Blueprint

    @classmethod
    def create_materialized_view(
        cls,
        operations: Operations,
        name: str,
        *,
        blueprint: "Blueprint",
        schema: str = DEFAULT_SCHEMA,
    ) -> None:
        """Create a view, empty, and capture changes of its tables from now on."""
        operations.invoke(cls(name, schema, blueprint))

    def reverse(self) -> "DropMaterializedViewOp":
        """Return the operation that undoes this one."""
        return DropMaterializedViewOp(self.name, self.schema, self.blueprint)

    def to_diff_tuple(self) -> tuple[str, str, str]:
        """Return it as ``alembic check`` shows it."""
        return ("add_materialized_view", self.schema, self.name)


@Operations.register_operation("drop_materialized_view")
@dataclass
class DropMaterializedViewOp(MigrateOperation):
    """Drop a view, and stop capturing what nobody else consumes."""

    name: str
    schema: str
    blueprint: Blueprint | None = None

    @classmethod
    def drop_materialized_view(
        cls,
        operations: Operations,
        name: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        blueprint: "Blueprint | None" = None,
    ) -> None:
        """Drop a view; ``blueprint`` is what it was, for the way back."""
        operations.invoke(cls(name, schema, blueprint))

    def reverse(self) -> CreateMaterializedViewOp:
        """Return the operation that undoes this one.

        Raises:
            ViewMigrationError: What the view was is not known.
        """
        if self.blueprint is None:
            raise ViewMigrationError(
                self.name, "nobody has said what it was; give drop_materialized_view(blueprint=)"
            )
        return CreateMaterializedViewOp(self.name, self.schema, self.blueprint)

    def to_diff_tuple(self) -> tuple[str, str, str]:
        """Return it as ``alembic check`` shows it."""
        return ("remove_materialized_view", self.schema, self.name)


@Operations.register_operation("replace_materialized_view")
@dataclass
class ReplaceMaterializedViewOp(MigrateOperation):
    """Give a view another query."""

    name: str
    schema: str
    old: Blueprint
    new: Blueprint
    at_once: bool = False
    back_at_once: bool = False

    @classmethod
    def replace_materialized_view(
        cls,
        operations: Operations,
        name: str,
        *,
        old: "Blueprint",
        new: "Blueprint",
        schema: str = DEFAULT_SCHEMA,
        at_once: bool = False,
    ) -> None:
        """Give a view another query."""
        operations.invoke(cls(name, schema, old, new, at_once))

    def reverse(self) -> "ReplaceMaterializedViewOp":
        """Return the operation that undoes this one."""
        return ReplaceMaterializedViewOp(
            self.name, self.schema, self.new, self.old, at_once=self.back_at_once
        )

    def to_diff_tuple(self) -> tuple[str, str, str]:
        """Return it as ``alembic check`` shows it."""
        return ("modify_materialized_view", self.schema, self.name)


@Operations.implementation_for(CreateMaterializedViewOp)
def _create(operations: Operations, operation: CreateMaterializedViewOp) -> None:
    conn, names = _prepared(operations, operation)
    with _explained():
        create_from_blueprint(conn, names, operation.blueprint)


@Operations.implementation_for(DropMaterializedViewOp)
def _drop(operations: Operations, operation: DropMaterializedViewOp) -> None:
    drop_view(*_prepared(operations, operation))


@Operations.implementation_for(ReplaceMaterializedViewOp)
def _replace(operations: Operations, operation: ReplaceMaterializedViewOp) -> None:
    conn, names = _prepared(operations, operation)
    with _explained():
        replace_view(conn, names, operation.new, at_once=operation.at_once)


def _prepared(operations: Operations, operation: Any) -> tuple[Connection, ViewNames]:  # noqa: ANN401
    name, schema = operation.name, checked_schema(operation.schema)
    if operations.migration_context.as_sql:
        raise ViewMigrationError(
            name,
            "the server is asked about its query and its columns, so it cannot be written as SQL;"
            " run the migration without --sql",
        )
    conn = operations.get_bind()
    if not has_catalogue(conn, schema):
        raise ViewMigrationError(
            name,
            f"the library's tables are not in schema {schema!r}; run datapatterns migrate upgrade"
            " before, or name our newest revision in depends_on",
        )
    return conn, view_names(schema, name)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ViewDefinitionError as error:
        error.add_note(_OTHER_COLUMNS)
        raise
