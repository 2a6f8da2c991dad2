"""Which of its candidates a declared view is going to be kept by."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from psycopg.errors import InvalidSchemaName, UndefinedColumn, UndefinedTable
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import ProgrammingError

from datapatterns.alembic.table_changes import TableChanges
from datapatterns.change_log.inspecting import inspect_columns, resolve_name
from datapatterns.materialized_view.blueprint import Blueprint, Requirement
from datapatterns.materialized_view.creating import built_upon, create_definition
from datapatterns.materialized_view.definition import ViewDefinition, not_incremental
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.needs import unmet_need


def choose_blueprint(
    conn: Connection, view: ViewDefinition, changes: TableChanges, parents: Sequence[str] = ()
) -> Blueprint:
    """Return the first candidate that the database has no objection to.

    It is asked about columns that are there and stay as they are. Of those that the same
    migration makes it knows nothing; there the models are believed, and the migration fails if
    they are wrong.

    Args:
        conn: A connection in a transaction.
        view: The view.
        changes: What the same migration does to tables.
        parents: The views that it is built upon, whether they are there or not.

    Raises:
        CaptureRefusedError: Changes of one of its tables would be missed.
        ViewDefinitionError: There is an objection to each.
    """
    upon = built_upon(parents)
    objection = upon
    for candidate in view.candidates:
        blueprint = view.blueprint(candidate)
        found = upon if blueprint.sources else None
        found = found or _objection(conn, view.names, blueprint, changes)
        if found is None:
            return blueprint if objection is None else replace(blueprint, reason=objection)
        objection = objection or found
    raise not_incremental(view.names.view, str(objection))


def _objection(
    conn: Connection, names: ViewNames, blueprint: Blueprint, changes: TableChanges
) -> str | None:
    """Ask about columns that are there, and about the query if all that it names is."""
    settled = replace(blueprint, requirements=tuple(_known(conn, blueprint, changes)))
    if settled.requirements != tuple(r for r in blueprint.requirements if r.table):
        return unmet_need(conn, names, settled)
    # Under a name that no view can have: this one may be there, with the query that it had.
    asked = names.check
    try:
        with conn.begin_nested() as savepoint:
            create_definition(conn, asked, blueprint)
            found = unmet_need(conn, asked, blueprint)
            savepoint.rollback()
    except ProgrammingError as error:
        if not isinstance(error.orig, InvalidSchemaName | UndefinedTable | UndefinedColumn):
            raise
        return unmet_need(conn, names, settled)
    return found


def _known(conn: Connection, blueprint: Blueprint, changes: TableChanges) -> Iterator[Requirement]:
    for required in blueprint.requirements:
        if not required.table or conn.scalar(select(func.to_regclass(required.table))) is None:
            continue
        place = resolve_name(conn, required.table)
        there = {column.name for column in inspect_columns(conn, required.table)}
        if required.column in there and (place, required.column) not in changes.unsettled:
            yield required
