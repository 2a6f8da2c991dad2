"""Let the next version of a view take its place: by names, at once, with nothing in between.

Readers see the rows of the old version until that is committed, and those of the new one after.
What is written is a few rows of the catalogue, whatever the version holds.
"""

from typing import Any, Final

from psycopg import sql
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Table,
    delete,
    func,
    insert,
    literal,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import OID
from sqlalchemy.exc import OperationalError

from datapatterns.change_log import change_log_tables
from datapatterns.change_log.inspecting import inspect_columns
from datapatterns.change_log.locking import take_turn
from datapatterns.failpoints import failpoint
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.creating import create_shown
from datapatterns.materialized_view.dependants import (
    read_dependants,
    require_replaceable,
    run_all,
)
from datapatterns.materialized_view.meaning import as_noted
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.realtime import create_realtime
from datapatterns.materialized_view.records import read_blueprint, read_logs
from datapatterns.materialized_view.releasing import capture_no_more
from datapatterns.materialized_view.schema import materialized_views, view_parents
from datapatterns.sql.composing import execute

LOCK_MILLISECONDS: Final = 500
"""For so long does a switch wait for readers, and others behind it; then it is tried again."""

_CLASSES = table("pg_class", Column("oid", OID), Column("relowner", OID), schema="pg_catalog")
_CLEAR = sql.SQL("DROP VIEW {}; DROP VIEW {}; DROP VIEW {}; DROP TABLE {}")
_RENAME = sql.SQL("ALTER VIEW {} RENAME TO {}; ALTER TABLE {} RENAME TO {}")


def may_switch(conn: Connection, names: ViewNames) -> bool:
    """Return whether the role owns the view, or is a member of who does."""
    owned = func.pg_has_role(_CLASSES.c.relowner, "USAGE", type_=Boolean)
    view = func.to_regclass(_qualified(names), type_=OID)
    return bool(conn.scalar(select(owned).where(_CLASSES.c.oid == view)))


def try_to_switch(conn: Connection, names: ViewNames) -> bool:
    """Let the next version take the view's place, unless readers hold it for long.

    Returns:
        False if nothing was changed, because of them or of a migration that has not ended.

    Raises:
        ViewMigrationError: Something that stands upon the view needs its old columns.
    """
    try:
        with conn.begin_nested():
            before = conn.scalar(select(func.current_setting("lock_timeout")))
            conn.execute(select(func.set_config("lock_timeout", str(LOCK_MILLISECONDS), True)))
            is_its_turn = take_turn(conn, schema=names.schema, skip_locked=True)
            if is_its_turn:
                switch_view(conn, names)
            conn.execute(select(func.set_config("lock_timeout", before, True)))
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable | DeadlockDetected):
            raise
        return False
    return is_its_turn


def switch_view(conn: Connection, names: ViewNames) -> None:
    """Let the next version take the view's place.

    Rights, comments and plain views upon the view stay. The caller holds the versions and, if
    anybody refreshes the view, its stored rows; and has made the next version as fresh.

    Raises:
        ViewMigrationError: Something that stands upon the view needs its old columns.
    """
    upcoming = names.next
    blueprint = read_blueprint(conn, upcoming)
    assert blueprint is not None, "there is a next version"
    old_logs = read_logs(conn, names)
    # In the order in which readers lock: a view upon it, the view, its tables.
    if keeps_columns(conn, names):
        _show(conn, names, blueprint)
    else:
        require_replaceable(conn, names, blueprint.columns)
        upon = read_dependants(conn, names, blueprint.columns)
        run_all(conn, upon.down)
        _show(conn, names, blueprint)
        run_all(conn, [*upon.looks, *upon.up])
    failpoint("view.switched")
    _rename(conn, names)
    _record(conn, names, blueprint.under(upcoming, names))
    capture_no_more(conn, names.schema, old_logs)


def keeps_columns(conn: Connection, names: ViewNames) -> bool:
    """Return whether the next version has the view's columns, and perhaps more at the end."""
    old, new = (
        [(each.name, each.type_sql) for each in inspect_columns(conn, _qualified(version))]
        for version in (names, names.next)
    )
    return new[: len(old)] == old


def _show(conn: Connection, names: ViewNames, blueprint: Blueprint) -> None:
    logs = read_logs(conn, names.next)
    with as_noted(conn, names.next):
        create_shown(conn, names.next, blueprint, shown_as=names)
        create_realtime(conn, names.next, blueprint, logs, shown_as=names)


def _rename(conn: Connection, names: ViewNames) -> None:
    """Drop what is of no use any more, and give the rest its name."""
    upcoming, schema = names.next, names.schema
    old = (upcoming.view, upcoming.realtime, names.definition, names.stored)
    execute(conn, _CLEAR.format(*(sql.Identifier(schema, name) for name in old)))
    rename = _RENAME.format(
        sql.Identifier(schema, upcoming.definition),
        sql.Identifier(names.definition),
        sql.Identifier(schema, upcoming.stored),
        sql.Identifier(names.stored),
    )
    execute(conn, rename)


def _record(conn: Connection, names: ViewNames, blueprint: Blueprint) -> None:
    """Let view and consumer be what the next version is, under their own names."""
    views, tables = materialized_views(names.schema), change_log_tables(names.schema)
    upcoming = names.next
    own, consumer = {"name": names.consumer}, {"consumer": names.consumer}
    entry = {"name": names.view, "digest": blueprint.digest, "blueprint": blueprint.to_json()}
    conn.execute(delete(views).where(views.c.name == names.view))
    conn.execute(delete(tables.consumers).where(tables.consumers.c.name == names.consumer))
    consumers, subscriptions = tables.consumers, tables.subscriptions
    _copy(conn, consumers, consumers.c.name == upcoming.consumer, own)
    _copy(conn, subscriptions, subscriptions.c.consumer == upcoming.consumer, consumer)
    _copy(conn, views, views.c.name == upcoming.view, entry | consumer)
    parents = view_parents(names.schema)
    _copy(conn, parents, parents.c.view == upcoming.view, {"view": names.view})
    conn.execute(delete(views).where(views.c.name == upcoming.view))
    conn.execute(delete(tables.consumers).where(tables.consumers.c.name == upcoming.consumer))


def _copy(
    conn: Connection, table: Table, which: ColumnElement[bool], changes: dict[str, Any]
) -> None:
    """Insert the rows once more, with ``changes``."""
    columns = [*table.columns]
    values = [
        literal(changes[each.name], each.type) if each.name in changes else each for each in columns
    ]
    conn.execute(insert(table).from_select(columns, select(*values).where(which)))


def _qualified(names: ViewNames) -> str:
    return sql.Identifier(names.schema, names.view).as_string(None)
