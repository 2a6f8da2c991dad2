"""Ask the server whether a query and its columns are what a strategy needs them to be."""

from typing import TypeAlias

from psycopg import sql
from psycopg.errors import DatatypeMismatch, UndefinedFunction
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from datapatterns.change_log.inspecting import SourceColumn, inspect_columns, inspect_source
from datapatterns.materialized_view.blueprint import Blueprint, Need, Requirement
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.trusted_functions import untrusted_call
from datapatterns.sql.composing import execute

_NULLS_NOT_DISTINCT_SINCE = 15
_EQUALITY = sql.SQL("""
SELECT NOT EXISTS (
    SELECT FROM pg_catalog.pg_opclass c
    JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
    JOIN pg_catalog.pg_amop a ON a.amopfamily = c.opcfamily AND a.amopstrategy = 3
     AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype
    WHERE c.opcdefault AND c.opcintype = pg_typeof(NULL::{})
      AND NOT pg_operator_is_visible(a.amopopr))
""")
_INTEGERS = ("smallint", "integer", "bigint")
_FIXED_NUMERIC = "numeric("


def unmet_need(conn: Connection, names: ViewNames, blueprint: Blueprint) -> str | None:
    """Return, for people, the first requirement that does not hold; None if all do.

    The plain view of the query is there already.
    """
    columns: dict[str, dict[str, SourceColumn]] = {}
    for required in blueprint.requirements:
        if required.need is Need.TOTAL:
            objection = untrusted_call(conn, names)
        else:
            if required.table not in columns:
                columns[required.table] = _columns(conn, names, blueprint, required.table)
            column = columns[required.table].get(required.column)
            objection = _objection(conn, required, column)
        if objection is not None:
            return objection
    return None


def has_nulls_not_distinct(conn: Connection) -> bool:
    """Return whether a unique index of this server can call NULLs equal."""
    version = conn.dialect.server_version_info
    return version is not None and int(version[0]) >= _NULLS_NOT_DISTINCT_SINCE


def has_hash(conn: Connection, type_sql: str) -> bool:
    """Return whether values of a type can be hashed, as the server writes its name.

    It is no domain, which may forbid the NULL that is asked with.
    """
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


def _columns(
    conn: Connection, names: ViewNames, blueprint: Blueprint, table: str
) -> dict[str, SourceColumn]:
    found = inspect_source(conn, table).columns if table else _stored(conn, names, blueprint)
    return {column.name: column for column in found}


def _stored(conn: Connection, names: ViewNames, blueprint: Blueprint) -> list[SourceColumn]:
    """Return the columns that the stored table would have; none if they cannot be compared."""
    probe = sql.Identifier(names.schema, names.stored)
    create = sql.SQL("CREATE VIEW {} AS {}").format(probe, sql.SQL(blueprint.fresh))
    try:
        with conn.begin_nested() as savepoint:
            execute(conn, create)
            columns = inspect_columns(conn, probe.as_string(None))
            savepoint.rollback()
    except ProgrammingError as error:
        if not isinstance(error.orig, DatatypeMismatch | UndefinedFunction):
            raise
        return []
    return columns


def _objection(conn: Connection, required: Requirement, column: SourceColumn | None) -> str | None:
    if column is None:
        return f"{required.column} does not exist in the database, or cannot be compared"
    met, otherwise = {
        Need.INTEGER: _is_integer,
        Need.FIXED_SCALE: _has_fixed_scale,
        Need.IDENTICAL: _is_identified,
        Need.NO_ZONE: _has_no_zone,
        Need.DISTINGUISHABLE: _is_distinguishable,
        Need.HASHABLE: _is_hashable,
    }[required.need](conn, column)
    return None if met else f"{required.column} {otherwise}"


_Answer: TypeAlias = tuple[bool, str]


def _is_integer(conn: Connection, column: SourceColumn) -> _Answer:  # noqa: ARG001 -- as others
    return column.logged_type_sql in _INTEGERS, "is not of a type of integers in the database"


def _has_fixed_scale(conn: Connection, column: SourceColumn) -> _Answer:  # noqa: ARG001
    base = column.logged_type_sql
    fixed = base in _INTEGERS or base.startswith(_FIXED_NUMERIC)
    return fixed, "is not of an exact type with a declared precision in the database"


def _is_identified(conn: Connection, column: SourceColumn) -> _Answer:  # noqa: ARG001
    return column.equality_is_identity, "has equal values that differ, and is not declared so"


def _has_no_zone(conn: Connection, column: SourceColumn) -> _Answer:  # noqa: ARG001
    zoned = "with time zone" in column.type_sql
    return not zoned, "has a time zone, and the query names a time that has none"


def _is_distinguishable(conn: Connection, column: SourceColumn) -> _Answer:
    apart = not has_nulls_not_distinct(conn) and column.is_nullable
    return not apart, "is a key that can be NULL, and this server keeps such keys apart"


def _is_hashable(conn: Connection, column: SourceColumn) -> _Answer:
    if not _has_own_equality(conn, column.logged_type_sql):
        # As citext outside: = would be that of texts, while GROUP BY goes by the type.
        return False, "is a key of a type whose operators are not in search_path"
    return has_hash(
        conn, column.logged_type_sql
    ), "is a key of a type whose values cannot be hashed"


def _has_own_equality(conn: Connection, type_sql: str) -> bool:
    """Return whether ``=`` between values of a type is what the type is grouped by."""
    found = execute(conn, _EQUALITY.format(sql.SQL(type_sql))).scalar_one()
    return bool(found)
