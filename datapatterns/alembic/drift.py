"""Compare a view in the database with what it was created as.

What it was created as is made a second time, under other names, and PostgreSQL is asked what both
are; then the second is undone. So nothing is guessed about how PostgreSQL writes SQL down.
"""

from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import ProgrammingError

from datapatterns.change_log.capturing import is_captured
from datapatterns.errors import CaptureRefusedError, ViewDefinitionError
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.creating import create_from_blueprint
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.records import read_columns
from datapatterns.sql.composing import execute_written

_KINDS = text("""
SELECT c.relname AS name, c.relkind AS kind
FROM pg_catalog.pg_class c
WHERE c.relnamespace = to_regnamespace(:schema) AND c.relname = ANY (:names)
""")
_PARTS = text("""
SELECT c.relname AS owner, 'query' AS kind, pg_get_viewdef(c.oid) AS line
FROM pg_catalog.pg_class c
WHERE c.relnamespace = to_regnamespace(:schema) AND c.relname = ANY (:names) AND c.relkind = 'v'
UNION ALL
SELECT c.relname, 'column', format('%s %s %s %s', a.attname, format_type(a.atttypid, a.atttypmod),
                                   a.attcollation::regcollation, a.attnotnull)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = to_regnamespace(:schema) AND c.relname = ANY (:names)
UNION ALL
SELECT c.relname, 'index',
       regexp_replace(pg_get_indexdef(i.indexrelid), 'INDEX .* ON ', 'INDEX ON ')
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisvalid
WHERE c.relnamespace = to_regnamespace(:schema) AND c.relname = ANY (:names)
""")
_WRITTEN = text("""
SELECT format('CREATE OR REPLACE VIEW %s AS %s', c.oid::regclass, pg_get_viewdef(c.oid))
FROM pg_catalog.pg_class c
WHERE c.relnamespace = to_regnamespace(:schema) AND c.relname = ANY (:names) AND c.relkind = 'v'
""")
_TIMES_WRITTEN = 2
"""A view may have been restored, or told anew by a migration, so often since it was created."""

_Placed: TypeAlias = tuple[str, str, str]


def drift(conn: Connection, names: ViewNames, blueprint: Blueprint) -> str | None:
    """Return, for people, what of the view is not what it was created as; None if all is.

    Further indexes of the stored table are nobody's mistake. The caller's transaction is as
    before, except that it has an id.
    """
    return _missing(conn, names) or _uncaptured(conn, names) or _altered(conn, names, blueprint)


def _missing(conn: Connection, names: ViewNames) -> str | None:
    kinds = dict.fromkeys(names.relations, "v") | {names.stored: "r"}
    rows = conn.execute(_KINDS, {"schema": names.schema, "names": [*kinds]})
    found = {row.name: row.kind for row in rows}
    lost = [name for name, kind in kinds.items() if found.get(name) != kind]
    return f"{names.schema}.{lost[0]} is gone" if lost else None


def _uncaptured(conn: Connection, names: ViewNames) -> str | None:
    for table, columns in read_columns(conn, names).items():
        try:
            if not is_captured(conn, table, columns, schema=names.schema):
                return f"changes of {table} are not captured"
        except CaptureRefusedError as error:
            return str(error)
    return None


def _altered(conn: Connection, names: ViewNames, blueprint: Blueprint) -> str | None:
    again = names.check
    savepoint = conn.begin_nested()
    try:
        found = {_placed(row, names, names) for row in _parts(conn, names)}
        create_from_blueprint(conn, again, blueprint.under(names, again))
        wanted = {_placed(row, again, names) for row in _parts(conn, again)}
        for _ in range(_TIMES_WRITTEN if wanted - found else 0):
            _write_again(conn, again)
            written = {_placed(row, again, names) for row in _parts(conn, again)}
            as_good = {part for part in found & written if part[1] == "query"}
            told = {owner for owner, _, _ in as_good}
            wanted = as_good | {p for p in wanted if p[1] != "query" or p[0] not in told}
    except (CaptureRefusedError, ViewDefinitionError) as error:
        return str(error)
    except ProgrammingError as error:
        return str(error.orig)
    finally:
        savepoint.rollback()
    extra = {part for part in found - wanted if part[1] != "index"}
    differing = sorted((wanted - found) | extra)
    return f"{differing[0][1]} of {names.schema}.{differing[0][0]}" if differing else None


def _write_again(conn: Connection, names: ViewNames) -> None:
    """Do what a dump that is restored does: PostgreSQL reads what it wrote a little differently."""
    given = {"schema": names.schema, "names": [*names.relations]}
    for statement in conn.scalars(_WRITTEN, given).all():
        execute_written(conn, statement)


def _parts(conn: Connection, names: ViewNames) -> list[Row[Any]]:
    given = {"schema": names.schema, "names": [*names.relations]}
    return [*conn.execute(_PARTS, given).all()]


def _placed(row: Row[Any], names: ViewNames, real: ViewNames) -> _Placed:
    """Return a part as one of the view that is compared with."""
    owner, line = (part.replace(names.view, real.view) for part in (row.owner, row.line))
    return owner, row.kind, line
