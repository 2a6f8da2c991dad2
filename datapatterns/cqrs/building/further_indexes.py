"""Indexes and statistics of the live table that its mapped class does not say."""

from typing import Final

from psycopg import sql
from psycopg.errors import (
    DatatypeMismatch,
    FeatureNotSupported,
    UndefinedColumn,
    UndefinedFunction,
    UndefinedObject,
)
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from datapatterns.cqrs.building.relations import Relation
from datapatterns.cqrs.tables.versions import shadow_name
from datapatterns.sql.composing import execute, execute_written

_INDEXES: Final = text("""
SELECT i.relname::text AS name, x.indisunique AS is_unique,
       substr(pg_get_indexdef(x.indexrelid), 1 + length(
           format('CREATE %sINDEX %I ON %I.%I ', CASE WHEN x.indisunique THEN 'UNIQUE ' ELSE '' END,
                  i.relname, n.nspname, c.relname))) AS manner
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_class c ON c.oid = x.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE x.indrelid = :oid AND x.indisvalid
  AND (NOT :without_keys OR NOT EXISTS (
      SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = x.indexrelid
      AND k.conrelid = x.indrelid AND k.contype IN ('p', 'u', 'x')))
ORDER BY 1
""")

_STATISTICS: Final = text("""
SELECT e.stxname::text AS name,
       (SELECT coalesce(' (' || string_agg(CASE k WHEN 'd' THEN 'ndistinct' WHEN 'f' THEN
                                           'dependencies' ELSE 'mcv' END, ', ') || ')', '')
        FROM unnest(e.stxkind) k WHERE k <> 'e') AS kinds,
       pg_get_statisticsobjdef_columns(e.oid) AS columns
FROM pg_catalog.pg_statistic_ext e JOIN pg_catalog.pg_class c ON c.oid = e.stxrelid
WHERE c.oid = :oid AND e.stxnamespace = c.relnamespace ORDER BY 1
""")

_REPLICA_IDENTITY: Final = text("""
SELECT s.relreplident::text AS wanted, t.relreplident::text AS found,
       (SELECT i.relname::text FROM pg_catalog.pg_index x
        JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
        WHERE x.indrelid = s.oid AND x.indisreplident) AS index_name
FROM pg_catalog.pg_class s JOIN pg_catalog.pg_class t ON t.oid = :target WHERE s.oid = :source
""")

_NOT_FOR_THESE_COLUMNS: Final = (
    UndefinedColumn,
    UndefinedFunction,  # of the column's type, as are all of these
    UndefinedObject,
    DatatypeMismatch,
    FeatureNotSupported,
)


def add_further_indexes(
    conn: Connection, live: Relation, table: Relation, version: int
) -> dict[str, str]:
    """Give ``table`` the indexes of the live one that it lacks, as far as its columns allow.

    Returns:
        What they are to be called once ``table`` is live, by what they are called.
    """
    present = _indexes(conn, table, without_keys=False)
    known = {(is_unique, manner) for _, is_unique, manner in present}
    names = {}
    for name, is_unique, manner in _indexes(conn, live, without_keys=True):
        called = shadow_name(name, version)
        if (is_unique, manner) in known or called in {other for other, _, _ in present}:
            continue
        statement = sql.SQL("CREATE {}INDEX {} ON {} ").format(
            sql.SQL("UNIQUE " if is_unique else ""), sql.Identifier(called), table.identifier
        )
        if _made(conn, statement.as_string(None) + manner):
            names[called] = name
    return names


def add_further_statistics(
    conn: Connection, live: Relation, table: Relation, version: int
) -> dict[str, str]:
    """Give ``table`` the extended statistics of the live one, as far as its columns allow.

    Returns:
        What they are to be called once ``table`` is live, by what they are called.
    """
    names = {}
    for name, kinds, columns in conn.execute(_STATISTICS, {"oid": live.oid}):
        called = shadow_name(name, version)
        statement = sql.SQL("CREATE STATISTICS {}").format(sql.Identifier(table.schema, called))
        made = f"{statement.as_string(None)}{kinds} ON {columns} FROM "
        if _made(conn, made + table.identifier.as_string(None)):
            names[called] = name
    return names


def _made(conn: Connection, statement: str) -> bool:
    try:
        with conn.begin_nested():
            execute_written(conn, statement)
    except DBAPIError as error:
        if not isinstance(error.orig, _NOT_FOR_THESE_COLUMNS):
            raise
        return False
    return True


def set_replica_identity(
    conn: Connection, live: Relation, table: Relation, names: dict[str, str]
) -> None:
    """Let logical replication tell the rows of ``table`` apart as it does those of ``live``.

    Args:
        conn: A connection in a transaction.
        live: The table that is live.
        table: What is to take its place.
        names: What the indexes of ``table`` are to be called, by what they are called.
    """
    asked = {"source": live.oid, "target": table.oid}
    wanted, found, index_name = conn.execute(_REPLICA_IDENTITY, asked).one()
    if wanted == "i":
        called = {live_name: name for name, live_name in names.items()}.get(index_name)
        if called is not None:
            _alter(conn, table, sql.SQL("USING INDEX {}").format(sql.Identifier(called)))
    elif wanted != found:
        kinds = {"d": "DEFAULT", "f": "FULL", "n": "NOTHING"}
        _alter(conn, table, sql.SQL(kinds[wanted]))


def _alter(conn: Connection, table: Relation, identity: sql.Composable) -> None:
    statement = sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}")
    execute(conn, statement.format(table.identifier, identity))


def _indexes(
    conn: Connection, table: Relation, *, without_keys: bool
) -> list[tuple[str, bool, str]]:
    asked = {"oid": table.oid, "without_keys": without_keys}
    return [(name, unique, manner) for name, unique, manner in conn.execute(_INDEXES, asked)]
