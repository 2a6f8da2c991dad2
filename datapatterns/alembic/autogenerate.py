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
from datapatterns.alembic.indexes.registering import registered_indexes
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
from datapatterns.materialized_view.replacing import stores_the_same

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
    for schema in _schemas_of_ours(context):
        upgrade_ops.ops[:] = _without_ours(context, upgrade_ops.ops, schema)
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
    for schema in _schemas_of_ours(context):
        if schema not in declared:
            schemas.discard(schema)


def _schemas_of_ours(context: AutogenContext) -> set[str]:
    views = {each.schema for each in registered_views(context.metadata)}
    return views | {each.schema for each in registered_indexes(context.metadata)}


class _Comparison:
    """What has to become of the views of one schema: first, and last."""

    def __init__(self, context: AutogenContext, views: Views, changes: TableChanges) -> None:
        assert context.connection is not None
        self._conn: Connection = context.connection
        self._context, self._views, self._changes = context, views, changes
        self._existing = self._read_existing()
        self._built_upon = self._read_parents()
        self._wanted: dict[str, Blueprint] = {}
        self._drops: dict[str, DropMaterializedViewOp] = {}
        self._made: dict[str, CreateMaterializedViewOp | ReplaceMaterializedViewOp] = {}
        for name in self._built_upon:
            if not views.declares(name):
                self._compare_undeclared(name, self._existing[name])
        for view in views.ordered:
            if self._includes(view, view.name, self._existing.get(view.name)):
                self._compare(view, self._existing.get(view.name))
        self._make_anew_above()
        self._replace_below()
        self._go_back_from_above()

    @property
    def first(self) -> list[DropMaterializedViewOp]:
        """Return the drops, each before those of what the view is built upon."""
        dependants_first = reversed(in_order(self._built_upon))
        return [self._drops[name] for name in dependants_first if name in self._drops]

    @property
    def last(self) -> list[CreateMaterializedViewOp | ReplaceMaterializedViewOp]:
        """Return the rest, each after what the view is built upon."""
        return [self._made[view.name] for view in self._views.ordered if view.name in self._made]

    def _read_existing(self) -> dict[str, Blueprint]:
        if not has_catalogue(self._conn, self._views.schema):
            return {}
        return declared_blueprints(self._conn, self._views.schema)

    def _read_parents(self) -> dict[str, list[str]]:
        """Return the views that each view in the database is built upon there."""
        schema = self._views.schema
        read = {name: _read(self._conn, ViewNames(schema, name)) for name in self._existing}
        tables = {f'"{schema}"."{ViewNames(schema, name).stored}"': name for name in read}
        return {
            name: [tables[table] for table in columns if table in tables]
            for name, columns in read.items()
        }

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
            self._drop(name)

    def _compare(self, view: MaterializedView, found: Blueprint | None) -> None:
        name, schema, names = view.name, view.schema, view.definition.names
        parents = self._views.parents(view)
        wanted = choose_blueprint(self._conn, view.definition, self._changes, parents)
        self._wanted[name] = wanted
        if found is None:
            log.info("Detected added materialized view %r", name)
            self._made[name] = CreateMaterializedViewOp(name, schema, wanted)
        elif reason := self._why_anew(names, found):
            self._make_anew(name, reason)
        elif _essence(found) != _essence(wanted):
            log.info("Detected changed materialized view %r", name)
            changed = ReplaceMaterializedViewOp(name, schema, found, wanted)
            # On the way back the tables lose what the view reads: it cannot stay in service.
            changed.back_at_once = self._changes.add_to(self._tables(view))
            self._made[name] = changed

    def _drop(self, name: str) -> None:
        found = self._existing[name]
        self._drops[name] = DropMaterializedViewOp(name, self._views.schema, found)

    def _make_anew(self, name: str, reason: str) -> None:
        log.info("Materialized view %r has to be made anew: %s", name, reason)
        self._drop(name)
        self._made[name] = CreateMaterializedViewOp(name, self._views.schema, self._wanted[name])

    def _make_anew_above(self) -> None:
        """Let views be made anew that are built upon what is dropped, or gets other rows.

        They follow the changes of what the lower one stores, which cannot be exchanged below them.
        """
        for name in in_order(self._built_upon):
            changing = [parent for parent in self._built_upon[name] if self._is_exchanged(parent)]
            if changing and name in self._wanted and name not in self._drops:
                self._make_anew(name, f"it is built upon {changing[0]!r}, which changes")

    def _replace_below(self) -> None:
        """Let a view be replaced at once that others are going to be built upon, or were."""
        above = {name for view in self._views.ordered for name in self._views.parents(view)}
        below = {name for parents in self._built_upon.values() for name in parents}
        for name, made in self._made.items():
            if isinstance(made, ReplaceMaterializedViewOp) and self._is_exchanged(name):
                made.at_once = name in above
                made.back_at_once |= name in below
                if made.at_once:
                    log.info("Materialized view %r will be empty until it is filled", name)

    def _go_back_from_above(self) -> None:
        """Let the way back leave nothing upon a view that it drops, or gives other rows."""
        for view in self._views.ordered:
            made, upon = self._made.get(view.name), self._views.parents(view)
            if isinstance(made, ReplaceMaterializedViewOp) and any(map(self._goes_back, upon)):
                made.back_at_once = True

    def _goes_back(self, name: str) -> bool:
        return self._is_exchanged(name) or isinstance(
            self._made.get(name), CreateMaterializedViewOp
        )

    def _is_exchanged(self, name: str) -> bool:
        """Return whether what the view stores is dropped, or replaced by something else."""
        made = self._made.get(name)
        return name in self._drops or (
            isinstance(made, ReplaceMaterializedViewOp) and not stores_the_same(made.old, made.new)
        )

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
