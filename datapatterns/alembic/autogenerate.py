"""Find out which views a migration has to create, replace and drop."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import DropTableOp, MigrateOperation, ModifyTableOps, UpgradeOps
from sqlalchemy import Connection

import datapatterns.alembic.rendering  # noqa: F401 -- so that what is found can be written down
from datapatterns.alembic.choosing import choose_blueprint
from datapatterns.alembic.drift import drift
from datapatterns.alembic.operations import (
    CreateMaterializedViewOp,
    DropMaterializedViewOp,
    ReplaceMaterializedViewOp,
)
from datapatterns.alembic.registering import registered_views
from datapatterns.alembic.table_changes import TableChanges, table_changes
from datapatterns.materialized_view import MaterializedView, Views
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.building_upon import tables_of
from datapatterns.materialized_view.dependencies import in_order
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.records import (
    has_catalogue,
    read_blueprint,
    read_blueprints,
    read_columns,
)

log = logging.getLogger(__name__)

KIND = "materialized_view"
"""What hooks such as ``include_object`` are told that a view is."""


@dataclass(frozen=True, slots=True)
class ReflectedView:
    """A view that is in the database only, as hooks such as ``include_object`` see it."""

    name: str
    schema: str
    blueprint: Blueprint


def compare_views(
    context: AutogenContext, upgrade_ops: UpgradeOps, _schemas: set[str | None]
) -> None:
    """Add what has to become of the views that were registered.

    Drops stand before everything else: no table can lose what a view reads. What is created or
    replaced comes last, when tables have what it reads.
    """
    for views in registered_views(context.metadata):
        upgrade_ops.ops[:] = _without_ours(context, upgrade_ops.ops, views.schema)
    # All of them by now: a table belongs to no schema of views.
    changes = table_changes(upgrade_ops.ops, _default_schema(context))
    for views in registered_views(context.metadata):
        comparison = _Comparison(context, views, changes)
        upgrade_ops.ops[:] = [
            *comparison.first,
            *upgrade_ops.ops,
            *comparison.last,
        ]


def leave_out_ours(
    context: AutogenContext, _upgrade_ops: UpgradeOps, schemas: set[str | None]
) -> None:
    """Look at no tables where only the library's are, which its own migrations make.

    An environment with ``include_schemas`` would take them for tables that the models have lost.
    """
    declared = {table.schema for table in context.sorted_tables}
    for views in registered_views(context.metadata):
        if views.schema not in declared:
            schemas.discard(views.schema)


class _Comparison:
    """What has to become of the views of one schema: first, and last."""

    def __init__(self, context: AutogenContext, views: Views, changes: TableChanges) -> None:
        assert context.connection is not None
        self._conn: Connection = context.connection
        self._context, self._views, self._changes = context, views, changes
        self.first: list[DropMaterializedViewOp] = []
        self.last: list[CreateMaterializedViewOp | ReplaceMaterializedViewOp] = []
        existing = self._existing()
        for name in self._dependants_first(existing):
            if not views.declares(name):
                self._compare_undeclared(name, existing[name])
        for view in reversed(views.ordered):
            if self._includes(view, view.name, existing.get(view.name)):
                self._compare(view, existing.get(view.name))
        self.last.reverse()

    def _existing(self) -> dict[str, Blueprint]:
        if not has_catalogue(self._conn, self._views.schema):
            return {}
        return declared_blueprints(self._conn, self._views.schema)

    def _dependants_first(self, existing: Iterable[str]) -> list[str]:
        schema = self._views.schema
        read = {name: _read(self._conn, ViewNames(schema, name)) for name in existing}
        tables = {f'"{schema}"."{ViewNames(schema, name).stored}"': name for name in read}
        parents = {
            name: [tables[table] for table in columns if table in tables]
            for name, columns in read.items()
        }
        return [*reversed(in_order(parents))]

    def _includes(
        self, shown: MaterializedView | ReflectedView, name: str, found: Blueprint | None
    ) -> bool:
        in_database = isinstance(shown, ReflectedView)
        hooks: Any = self._context  # its hooks are typed for tables
        return bool(
            hooks.run_name_filters(name, KIND, {"schema_name": self._views.schema})
            and hooks.run_object_filters(shown, name, KIND, in_database, found)
        )

    def _compare_undeclared(self, name: str, found: Blueprint) -> None:
        reflected = ReflectedView(name, self._views.schema, found)
        if self._includes(reflected, name, None):
            log.info("Detected removed materialized view %r", name)
            self.first.append(DropMaterializedViewOp(name, reflected.schema, found))

    def _compare(self, view: MaterializedView, found: Blueprint | None) -> None:
        name, schema, names = view.name, view.schema, view.definition.names
        wanted = choose_blueprint(self._conn, view.definition, self._changes)
        if found is None:
            log.info("Detected added materialized view %r", name)
            self.last.append(CreateMaterializedViewOp(name, schema, wanted))
        elif reason := self._why_anew(names, found):
            log.info("Materialized view %r has to be made anew: %s", name, reason)
            self.first.append(DropMaterializedViewOp(name, schema, found))
            self.last.append(CreateMaterializedViewOp(name, schema, wanted))
        elif _essence(found) != _essence(wanted):
            log.info("Detected changed materialized view %r", name)
            changed = ReplaceMaterializedViewOp(name, schema, found, wanted)
            # On the way back the tables lose what the view reads: it cannot stay in service.
            changed.back_at_once = self._changes.add_to(self._tables(view))
            self.last.append(changed)

    def _why_anew(self, names: ViewNames, found: Blueprint) -> str | None:
        if self._changes.block(_read(self._conn, names)):
            return "a column that it reads is dropped or gets another type"
        live = read_blueprint(self._conn, names)
        assert live is not None
        if live == found:
            return drift(self._conn, names, live)
        upcoming = found.under(names, names.next)
        return drift(self._conn, names, live) or drift(self._conn, names.next, upcoming)

    def _tables(self, view: MaterializedView) -> Iterator[tuple[str, str]]:
        for schema, table in tables_of(view.definition.query):
            yield self._changes.place(schema, table)


def declared_blueprints(conn: Connection, schema: str) -> dict[str, Blueprint]:
    """Return what migrations have made of each view, also where that is not in its place yet."""
    found = read_blueprints(conn, schema)
    names = [ViewNames(schema, name) for name in found]
    live = {each.view: found[each.view] for each in names if each == each.live}
    upcoming = {
        each.live.view: found[each.view].under(each, each.live)
        for each in names
        if each != each.live
    }
    return live | upcoming


def _read(conn: Connection, names: ViewNames) -> dict[str, set[str]]:
    """Return the columns that the view reads of each table, whichever version."""
    both = read_columns(conn, names), read_columns(conn, names.next)
    return {
        table: {*both[0].get(table, ()), *both[1].get(table, ())} for table in both[0] | both[1]
    }


def _essence(blueprint: Blueprint) -> Blueprint:
    """Leave out what is for people, and what decides only whether it may be created."""
    return replace(blueprint, reason="", requirements=())


def _without_ours(
    context: AutogenContext, operations: Iterable[MigrateOperation], schema: str
) -> Iterator[MigrateOperation]:
    """Leave out changes of the library's own tables where the models have some beside them."""
    default = _default_schema(context)
    declared = {(table.schema or default, table.name) for table in context.sorted_tables}
    for operation in operations:
        if isinstance(operation, DropTableOp | ModifyTableOps):
            place = (operation.schema or default, operation.table_name)
            if place[0] == schema and place not in declared:
                continue
        yield operation


def _default_schema(context: AutogenContext) -> str:
    return context.dialect.default_schema_name or "public"
