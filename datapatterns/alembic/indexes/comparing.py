"""Find out which index tables a migration has to create and drop."""

import logging
from typing import Any, Final

from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import UpgradeOps
from psycopg import sql
from sqlalchemy import Connection, inspect, select

import datapatterns.alembic.indexes.rendering  # noqa: F401 -- so that what is found can be written
from datapatterns.alembic.indexes.operations import CreateIndexTableOp, DropIndexTableOp
from datapatterns.alembic.indexes.registering import registered_indexes
from datapatterns.alembic.table_changes import TableChanges, table_changes
from datapatterns.errors import IndexChangedError, IndexDetachedError
from datapatterns.index_table import Indexes, IndexTable
from datapatterns.index_table.blueprint import IndexBlueprint, blueprint_of, definition_from
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.schema import index_tables
from datapatterns.index_table.states import index_status

log = logging.getLogger(__name__)

KIND: Final = "index_table"
"""What hooks such as ``include_object`` are told that an index table is."""


def compare_indexes(
    context: AutogenContext, upgrade_ops: UpgradeOps, _schemas: set[str | None]
) -> None:
    """Add what has to become of the index tables that were registered.

    Drops stand before everything else: no table can lose what an index depends on. What is created
    comes last, when tables have what it reads.
    """
    default = context.dialect.default_schema_name or "public"
    changes = table_changes(upgrade_ops.ops, default)
    for indexes in registered_indexes(context.metadata):
        drops, made = _compared(context, indexes, changes)
        upgrade_ops.ops[:] = [*drops, *upgrade_ops.ops, *made]


def _compared(
    context: AutogenContext, indexes: Indexes, changes: TableChanges
) -> tuple[list[DropIndexTableOp], list[CreateIndexTableOp]]:
    assert context.connection is not None
    conn = context.connection
    existing = _existing(conn, indexes.schema)
    drops, made = [], []
    for name, blueprint in existing.items():
        if name not in {index.name for index in indexes.declared} and _includes(
            context, indexes.schema, name, None
        ):
            log.info("Detected removed index table %r", name)
            drops.append(DropIndexTableOp(name, indexes.schema, blueprint))
    for index in indexes.declared:
        if not _includes(context, indexes.schema, index.name, index):
            continue
        definition = index.definition
        if index.name in existing:
            reason = _why_anew(conn, definition, existing[index.name], changes)
            if reason is None:
                continue
            log.info("Index table %r has to be built anew: %s", index.name, reason)
            drops.append(DropIndexTableOp(index.name, indexes.schema, existing[index.name]))
        else:
            log.info("Detected added index table %r", index.name)
        made.append(CreateIndexTableOp(index.name, indexes.schema, blueprint_of(definition)))
    return drops, made


def _includes(context: AutogenContext, schema: str, name: str, declared: IndexTable | None) -> bool:
    hooks: Any = context  # its hooks are typed for tables
    return bool(
        hooks.run_name_filters(name, KIND, {"schema_name": schema})
        and hooks.run_object_filters(declared, name, KIND, declared is None, None)
    )


def _existing(conn: Connection, schema: str) -> dict[str, IndexBlueprint | None]:
    if not inspect(conn).has_table("index_table", schema=schema):
        return {}
    known = index_tables(schema).index_table
    rows = conn.execute(select(known.c.name, known.c.blueprint).order_by(known.c.name))
    return {
        row.name: None if row.blueprint is None else IndexBlueprint.of_json(row.blueprint)
        for row in rows
    }


def _why_anew(
    conn: Connection,
    definition: IndexDefinition,
    found: IndexBlueprint | None,
    changes: TableChanges,
) -> str | None:
    try:
        index_status(conn, definition)
    except IndexChangedError:
        return "it is declared otherwise"
    except IndexDetachedError:
        return "its triggers are not on its table"
    if found is not None:
        was = definition_from(definition.name, found, schema=definition.schema)
        place = changes.place(was.base.schema, was.base.name)
        if changes.block({sql.Identifier(*place).as_string(None): was.used_columns}):
            return "a column that it depends on is dropped or gets another type"
    return None
