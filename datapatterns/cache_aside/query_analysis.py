"""Ask the server what the result of a query depends on, and refuse what no write would tell."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

from datapatterns.errors import MissingRightsError, UncacheableQueryError
from datapatterns.sql.stored_rules import functions_in, relations_in, stored_rule

NAME_THEM: Final = "name the tags yourself: query(..., tags=[tag(Model)])"

_VIEW: Final = "pg_temp.datapatterns_cached_query"
_RELATIONS = text("""
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
       c.relpersistence::text AS persistence, c.relrowsecurity AS has_row_security,
       c.oid < 16384 AS is_catalog, c.relispartition AS is_partition,
       c.relkind = 'r' AND c.relhassubclass
       AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid) AS has_heirs
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY (CAST(:oids AS oid[]))
""")
_CLAUSES: Final = [
    (re.compile(r"\{SQLVALUEFUNCTION "), "the current time or user"),
    (re.compile(r"\{NEXTVALUEEXPR "), "the next value of a sequence"),
    (re.compile(r"\{TABLESAMPLECLAUSE "), "TABLESAMPLE"),
    (re.compile(r"\{ROWMARKCLAUSE "), "FOR UPDATE or FOR SHARE"),
    (re.compile(r"\{VAR :varno \d+ :varattno -\d"), "a system column"),
]
# What depends on settings of the session, such as the time zone, and on nothing else: whoever
# reads through one cache has the same.
_OF_SETTINGS: Final = frozenset({
    "anytextcat", "array_to_json", "array_to_string", "concat", "concat_ws", "date", "date_part",
    "date_trunc", "extract", "format", "json_agg", "json_build_array", "json_build_object",
    "json_object_agg", "jsonb_agg", "jsonb_build_array", "jsonb_build_object", "jsonb_object_agg",
    "phraseto_tsquery", "plainto_tsquery", "row_to_json", "textanycat", "time", "timestamp",
    "timestamptz", "to_char", "to_json", "to_jsonb", "to_tsquery", "to_tsvector",
    "websearch_to_tsquery",
})  # fmt: skip
_TIMES = "(?:date|timestamp|timestamptz)"
_OF_TIME_ZONE: Final = re.compile(
    rf"{_TIMES}_(?:eq|ne|lt|le|gt|ge|cmp)_{_TIMES}|timestamptz_(?:pl|mi)_interval"
    r"|interval_pl_timestamptz|\w+_?out"
)
_KINDS: Final = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
}


class Named(NamedTuple):
    """A table that a query reads.

    Attributes:
        schema: Its schema.
        name: Its name.
        times: How often the query names it.
    """

    schema: str
    name: str
    times: int


def read_tables(conn: Connection, query: SQLCompiler) -> list[Named]:
    """Return the tables that a query reads, all of them.

    Args:
        conn: A connection in a transaction, which is to be rolled back.
        query: The compiled query, with a parameter for each value of a list.

    Raises:
        MissingRightsError: The role may not create temporary views.
        UncacheableQueryError: It reads or calls what may change without a write that tells.
    """
    columns = ", ".join(f"column_{n}" for n, _ in enumerate(query._result_columns))  # noqa: SLF001
    # What is compared with NULL is analysed as it is with any value of its type.
    written = str(query) % defaultdict(lambda: "NULL")
    head = f"CREATE TEMPORARY VIEW {_VIEW}" + (f" ({columns})" if columns else "")
    conn.exec_driver_sql("SET TRANSACTION READ WRITE")
    try:
        conn.exec_driver_sql(f"{head} AS {written}", execution_options={"no_parameters": True})
    except DBAPIError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            raise MissingRightsError(
                "this role may not ask the server what a query reads: let it create temporary"
                f" views (GRANT TEMPORARY ON DATABASE) and read the tables, or {NAME_THEM}"
            ) from error
        said = next(iter(str(error.orig).splitlines()), "")
        raise UncacheableQueryError(f"the server says: {said}", NAME_THEM) from error
    rule = stored_rule(conn, _VIEW)
    _refuse_clauses(rule)
    for function in functions_in(conn, rule):
        _refuse_unsteady(function)
    times = relations_in(rule)
    found = conn.execute(_RELATIONS, {"oids": [*times]}).all()
    tables = [row for row in found if row.name != _VIEW.partition(".")[2]]
    for table in tables:
        _refuse_relation(table)
    return [Named(table.schema, table.name, times[table.oid]) for table in tables]


def _refuse_clauses(rule: str) -> None:
    for pattern, clause in _CLAUSES:
        if pattern.search(rule):
            raise UncacheableQueryError(clause, "leave it out, and do it with the result")


def _refuse_unsteady(function: Row[Any]) -> None:
    name = function.name
    if function.volatility == "i":
        return
    is_known = name in _OF_SETTINGS or _OF_TIME_ZONE.fullmatch(name)
    if function.volatility == "s" and function.is_builtin and is_known:
        return
    raise UncacheableQueryError(
        f"{name}() may return something else each time",
        "give its result as a value; the time in steps, such as hours",
    )


def _refuse_relation(table: Row[Any]) -> None:
    full_name = f"{table.schema}.{table.name}"
    objection = _KINDS.get(table.kind)
    if table.is_catalog:
        objection = "a table of the system"
    elif table.persistence == "t":
        objection = "a temporary table, which others do not see"
    elif table.has_row_security:
        objection = "a table with row level security, which shows each role something else"
    elif table.has_heirs:
        objection = "a table with heirs, whose rows are written elsewhere"
    elif table.is_partition:
        objection = "a partition; read the table it belongs to"
    if objection is not None:
        raise UncacheableQueryError(f"{full_name} is {objection}", NAME_THEM)


def names_of(tables: Sequence[Named]) -> str:
    """Return the names for people."""
    return ", ".join(f"{table.schema}.{table.name}" for table in tables)
