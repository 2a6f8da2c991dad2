"""What PostgreSQL's catalog says of base tables and guard views."""

from sqlalchemy import Connection, Table, text

from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.eligibility import ColumnFacts, TableFacts
from datapatterns.index_table.maintenance import view_name
from datapatterns.index_table.statements import table_name

_TABLE_FACTS = text("""
    SELECT c.relkind::text AS kind, c.relpersistence::text AS persistence,
           c.relispartition OR EXISTS (
               SELECT FROM pg_catalog.pg_inherits h WHERE c.oid IN (h.inhparent, h.inhrelid)
           ) AS in_hierarchy,
           c.relrowsecurity AS row_security,
           EXISTS (
               SELECT FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = c.oid
           ) AS subscribed,
           coalesce((
               SELECT array_agg(a.attname::text ORDER BY a.attnum)
               FROM pg_catalog.pg_constraint k
               JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (k.conkey)
               WHERE k.conrelid = c.oid AND k.contype = 'p'
           ), '{}') AS primary_key,
           EXISTS (
               SELECT FROM pg_catalog.pg_constraint k
               WHERE k.conrelid = c.oid AND k.contype = 'p' AND k.condeferrable
           ) AS primary_key_deferrable,
           ARRAY(
               SELECT a.attname::text FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = c.oid AND a.attgenerated = 'v'
           ) AS virtual_columns
    FROM pg_catalog.pg_class c
    WHERE c.oid = to_regclass(:name)
""")

_COLUMN_FACTS = text("""
    WITH RECURSIVE underlying AS (
        SELECT oid, oid AS base, typbasetype AS next FROM pg_catalog.pg_type
        UNION ALL
        SELECT u.oid, t.oid, t.typbasetype
        FROM underlying u JOIN pg_catalog.pg_type t ON t.oid = u.next
    )
    SELECT a.attname::text AS name,
           format_type(a.atttypid, a.atttypmod) AS type_sql,
           t.typname::text AS type_name,
           t.typtype = 'e' AS is_enum,
           quote_ident(n.nspname) || '.' || quote_ident(co.collname) AS collation_sql,
           coalesce(co.collisdeterministic, true) AS deterministic
    FROM pg_catalog.pg_attribute a
    JOIN underlying u ON u.oid = a.atttypid AND u.next = 0
    JOIN pg_catalog.pg_type t ON t.oid = u.base
    LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
    LEFT JOIN pg_catalog.pg_namespace n ON n.oid = co.collnamespace
    WHERE a.attrelid = to_regclass(:name) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
""")


def table_facts(conn: Connection, table: Table) -> TableFacts | None:
    """Return what the catalog says of ``table``, or None if it doesn't exist."""
    found = conn.execute(_TABLE_FACTS, {"name": table_name(table)}).one_or_none()
    return None if found is None else TableFacts(*found)


def column_facts(conn: Connection, definition: IndexDefinition) -> list[ColumnFacts]:
    """Return what the catalog says of the columns of the index's guard view."""
    found = conn.execute(_COLUMN_FACTS, {"name": view_name(definition)})
    return [ColumnFacts(*facts) for facts in found]
