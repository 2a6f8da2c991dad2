"""Ask the server whether columns are what a strategy needs them to be."""

from collections.abc import Iterable

from psycopg import sql
from psycopg.errors import UndefinedFunction
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from datapatterns.change_log.inspecting import SourceColumn, inspect_source
from datapatterns.materialized_view.blueprint import Need, Requirement
from datapatterns.sql.composing import execute

_NULLS_NOT_DISTINCT_SINCE = 15
_EXACT_TYPES = ("smallint", "integer", "bigint", "numeric")


def unmet_need(conn: Connection, requirements: Iterable[Requirement]) -> str | None:
    """Return, for people, the first requirement that does not hold; None if all do."""
    found: dict[str, dict[str, SourceColumn]] = {}
    for required in requirements:
        if required.table not in found:
            columns = inspect_source(conn, required.table).columns
            found[required.table] = {column.name: column for column in columns}
        column = found[required.table].get(required.column)
        if (objection := _objection(conn, required, column)) is not None:
            return objection
    return None


def has_nulls_not_distinct(conn: Connection) -> bool:
    """Return whether a unique index of this server can call NULLs equal."""
    version = conn.dialect.server_version_info
    return version is not None and int(version[0]) >= _NULLS_NOT_DISTINCT_SINCE


def has_hash(conn: Connection, type_sql: str) -> bool:
    """Return whether values of a type can be hashed, as the server writes its name."""
    # format_type() and regcollation write names quoted where they have to be.
    probe = sql.SQL("SELECT hash_record_extended(ROW(NULL::{}), 0)").format(sql.SQL(type_sql))
    try:
        with conn.begin_nested():
            execute(conn, probe)
    except ProgrammingError as error:
        if not isinstance(error.orig, UndefinedFunction):
            raise
        return False
    return True


def _objection(conn: Connection, required: Requirement, column: SourceColumn | None) -> str | None:
    name = required.column
    match required.need:
        case Need.EXACT if column is None or column.type_sql.split("(")[0] not in _EXACT_TYPES:
            return f"{name} is not of an exact type in the database"
        case Need.NO_ZONE if column is not None and "with time zone" in column.type_sql:
            return f"{name} has a time zone, and a condition compares with a time that has none"
        case Need.DISTINGUISHABLE if not has_nulls_not_distinct(conn):
            if column is None or column.is_nullable:
                return f"the key {name} can be NULL, and this server keeps such keys apart"
        case Need.HASHABLE if column is not None and not has_hash(conn, column.type_sql):
            return f"the key {name} has a type whose values cannot be hashed"
    return None
