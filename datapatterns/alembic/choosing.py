"""Which of its candidates a declared view is going to be kept by."""

from collections.abc import Iterator
from dataclasses import replace

from sqlalchemy import Connection, func, select

from datapatterns.alembic.table_changes import TableChanges
from datapatterns.change_log.inspecting import inspect_columns, resolve_name
from datapatterns.materialized_view.blueprint import Blueprint, Requirement
from datapatterns.materialized_view.definition import ViewDefinition, not_incremental
from datapatterns.materialized_view.needs import unmet_need


def choose_blueprint(conn: Connection, view: ViewDefinition, changes: TableChanges) -> Blueprint:
    """Return the first candidate that the database has no objection to.

    It is asked about columns that are there and stay as they are. Of those that the same
    migration makes it knows nothing; there the models are believed, and the migration fails if
    they are wrong.

    Raises:
        CaptureRefusedError: Changes of one of its tables would be missed.
        ViewDefinitionError: There is an objection to each.
    """
    objection: str | None = None
    for candidate in view.candidates:
        blueprint = view.blueprint(candidate)
        found = unmet_need(conn, [*_known(conn, blueprint, changes)])
        if found is None:
            return blueprint if objection is None else replace(blueprint, reason=objection)
        objection = objection or found
    raise not_incremental(view.names.view, str(objection))


def _known(conn: Connection, blueprint: Blueprint, changes: TableChanges) -> Iterator[Requirement]:
    for required in blueprint.requirements:
        if conn.scalar(select(func.to_regclass(required.table))) is None:
            continue
        place = resolve_name(conn, required.table)
        there = {column.name for column in inspect_columns(conn, required.table)}
        if required.column in there and (place, required.column) not in changes.unsettled:
            yield required
