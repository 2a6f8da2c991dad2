"""Compare a view in the database with what it was created as.

What it was created as is made a second time, under other names, and PostgreSQL is asked what both
are; then the second is undone. So nothing is guessed about how PostgreSQL writes SQL down.
"""

from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import ProgrammingError

from datapatterns.change_log.capturing import is_captured
from datapatterns.errors import CaptureRefusedError, ViewDefinitionError
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.creating import create_from_blueprint
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.records import read_columns

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
        create_from_blueprint(conn, again, blueprint.under(names, again))
        wanted = {_placed(row, again, names) for row in _parts(conn, again)}
    except (CaptureRefusedError, ViewDefinitionError) as error:
        return str(error)
    except ProgrammingError as error:
        return str(error.orig)
    finally:
        savepoint.rollback()
    found = {_placed(row, names, names) for row in _parts(conn, names)}
    extra = {part for part in found - wanted if part[1] != "index"}
    differing = sorted((wanted - found) | extra)
    return f"{differing[0][1]} of {names.schema}.{differing[0][0]}" if differing else None


def _parts(conn: Connection, names: ViewNames) -> list[Row[Any]]:
    given = {"schema": names.schema, "names": [*names.relations]}
    return [*conn.execute(_PARTS, given).all()]


def _placed(row: Row[Any], names: ViewNames, real: ViewNames) -> tuple[str, str, str]:
    """Return a part as one of the view that is compared with."""
    owner, line = (part.replace(names.view, real.view) for part in (row.owner, row.line))
    return owner, row.kind, line
