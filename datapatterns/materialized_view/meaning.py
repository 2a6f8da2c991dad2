"""The settings under which a view's query means what it did when the view was created.

The server reads the plain view of the query once and keeps what it stood for. A refresh says the
query anew, for some of its rows or for what changed: under another ``search_path`` a function, or
the ``=`` of an extension's type, would be another one; under another time zone or style of dates,
a time or date written without it would be another one, too. So what the settings were is noted at
the plain view, as its comment, which follows it under whatever name; and is so again meanwhile.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from psycopg import sql
from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Text,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.exc import DBAPIError

from datapatterns.materialized_view.names import ViewNames
from datapatterns.sql.composing import execute

_STRINGS: Final = "standard_conforming_strings"

# Schemas as they are found, since "$user" is another for each role; temporary ones hold no
# functions that are called without their names.
_SETTINGS_NOW = """
CAST(jsonb_build_object(
    'search_path', (
        SELECT string_agg(quote_ident(found.name), ', ' ORDER BY found.place)
        FROM unnest(current_schemas(true)) WITH ORDINALITY AS found (name, place)
        WHERE found.name NOT LIKE 'pg!_temp!_%' ESCAPE '!'),
    'TimeZone', current_setting('TimeZone'),
    'DateStyle', current_setting('DateStyle'),
    'IntervalStyle', current_setting('IntervalStyle'),
    'standard_conforming_strings', current_setting('standard_conforming_strings')
) AS text)
"""


def settings_now() -> ColumnElement[str]:
    """Return an expression for the settings of the session, as `settings_of` has them."""
    return literal_column(_SETTINGS_NOW, Text)


def settings_of(names: ViewNames) -> ColumnElement[str | None]:
    """Return an expression for the settings that were noted; NULL for a view of before."""
    definition = sql.Identifier(names.schema, names.definition).as_string(None)
    return func.obj_description(func.to_regclass(definition), "pg_class", type_=Text)


def note_settings(conn: Connection, names: ViewNames) -> None:
    """Write down how the server has just read the plain view of the query."""
    note = sql.SQL("COMMENT ON VIEW {} IS {}").format(
        sql.Identifier(names.schema, names.definition),
        sql.Literal(conn.scalar(select(settings_now()))),
    )
    execute(conn, note)


def other_settings(
    noted: str | None, now: str, dialect: Dialect | None = None
) -> Mapping[str, str]:
    """Return the noted settings that the session has otherwise.

    Args:
        noted: What `settings_of` gives.
        now: What `settings_now` gives.
        dialect: Who writes the statements; the library, as a blueprint has them, unless given.
    """
    if noted is None:
        return {}
    found: dict[str, str] = json.loads(now)
    wanted: dict[str, str] = json.loads(noted) | {_STRINGS: _strings_of(dialect)}
    return {name: value for name, value in wanted.items() if found.get(name) != value}


@contextmanager
def under(conn: Connection, settings: Mapping[str, str]) -> Iterator[None]:
    """Let ``settings`` be so meanwhile; nothing is said to the server if there are none."""
    if not settings:
        yield
        return
    before = conn.execute(select(*map(func.current_setting, settings))).one()
    _set(conn, settings)
    try:
        yield
    except DBAPIError:
        raise  # a transaction that failed takes no statement, and takes them back itself
    except BaseException:
        _set(conn, dict(zip(settings, before, strict=True)))
        raise
    _set(conn, dict(zip(settings, before, strict=True)))


@contextmanager
def as_noted(conn: Connection, names: ViewNames) -> Iterator[None]:
    """Let the server read what a blueprint says as it has read the plain view."""
    noted, now = conn.execute(select(settings_of(names), settings_now())).one()
    with under(conn, other_settings(noted, now)):
        yield


@contextmanager
def as_written(conn: Connection) -> Iterator[None]:
    """Let the server take backslashes for what they are, as blueprints do."""
    strings = conn.scalar(select(func.current_setting(_STRINGS)))
    with under(conn, {} if strings == "on" else {_STRINGS: "on"}):
        yield


def _set(conn: Connection, settings: Mapping[str, Any]) -> None:
    conn.execute(select(*(func.set_config(name, to, True) for name, to in settings.items())))


def _strings_of(dialect: Dialect | None) -> str:
    """Return what ``standard_conforming_strings`` has to be for how backslashes are written."""
    if dialect is None:
        return "on"
    written = literal("\\").compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    return "off" if str(written) == r"'\\'" else "on"
