"""Triggers, policies and places in publications: they move to the table that is promoted.

PostgreSQL writes down what there is while the old table has its name. Executed after the rename,
the same statements are about the new one: nothing in them has to be replaced.
"""

from typing import Final

from sqlalchemy import Connection, text

from datapatterns.cqrs.building.likeness import policies, policies_taken
from datapatterns.cqrs.building.relations import Relation
from datapatterns.sql.composing import execute_written

_TRIGGERS: Final = text("""
SELECT pg_get_triggerdef(t.oid) AS creation,
       CASE WHEN t.tgenabled <> 'O' THEN
           format('ALTER TABLE %s %s TRIGGER %I', t.tgrelid::regclass,
                  CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA'
                                   ELSE 'ENABLE ALWAYS' END, t.tgname) END AS state,
       format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass) AS removal
FROM pg_catalog.pg_trigger t WHERE t.tgrelid = :oid AND NOT t.tgisinternal ORDER BY t.tgname
""")

_COMMENTS: Final = text("""
SELECT format('COMMENT ON TRIGGER %I ON %s IS %L', t.tgname, t.tgrelid::regclass, d.description)
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_description d
  ON d.classoid = 'pg_catalog.pg_trigger'::regclass AND d.objoid = t.oid
WHERE t.tgrelid = :oid
UNION ALL
SELECT format('COMMENT ON POLICY %I ON %s IS %L', p.polname, p.polrelid::regclass, d.description)
FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_description d
  ON d.classoid = 'pg_catalog.pg_policy'::regclass AND d.objoid = p.oid
WHERE p.polrelid = :oid
""")

# Those of all tables, or of a schema, need no mention. Filters and lists of columns exist since
# PostgreSQL 15: as JSON, the view can be asked for what it may not have.
_PUBLICATIONS: Final = text("""
SELECT format('ALTER PUBLICATION %I DROP TABLE %s', p.pubname, CAST(:oid AS oid)::regclass)
       AS removal,
       format('ALTER PUBLICATION %I ADD TABLE ONLY %s', p.pubname, CAST(:oid AS oid)::regclass)
       || coalesce((
           SELECT ' (' || string_agg(quote_ident(listed.name), ', ') || ')'
           FROM jsonb_array_elements_text(CASE WHEN jsonb_typeof(v.entry -> 'attnames') = 'array'
                                          THEN v.entry -> 'attnames' END) listed(name)
           WHERE jsonb_array_length(v.entry -> 'attnames') < (
               SELECT count(*) FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = :oid AND a.attnum > 0 AND NOT a.attisdropped)
       ), '')
       || coalesce(' WHERE (' || (v.entry ->> 'rowfilter') || ')', '') AS addition
FROM pg_catalog.pg_publication_rel r
JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
JOIN LATERAL (
    SELECT to_jsonb(t) AS entry FROM pg_catalog.pg_publication_tables t
    JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE t.pubname = p.pubname AND t.schemaname = n.nspname AND t.tablename = c.relname
) v ON true
WHERE r.prrelid = :oid ORDER BY p.pubname
""")


def detach(conn: Connection, live: Relation) -> list[str]:
    """Take all that away from the live table, which must not be used by anybody else.

    Returns:
        What gives it to whatever has the table's name then.
    """
    removals, additions = [], []
    comments = list(conn.scalars(_COMMENTS, {"oid": live.oid}))
    for creation, state, removal in conn.execute(_TRIGGERS, {"oid": live.oid}):
        removals.append(removal)
        additions += [creation] if state is None else [creation, state]
    for removal, addition in conn.execute(_PUBLICATIONS, {"oid": live.oid}):
        removals.append(removal)
        additions.append(addition)
    if removals:
        execute_all(conn, removals)
    return additions + policies(conn, live, live) + comments


def execute_all(conn: Connection, statements: list[str]) -> None:
    """Execute what PostgreSQL has written, in one round trip."""
    execute_written(conn, ";\n".join(statements))


def without_policies(conn: Connection, table: Relation) -> list[str]:
    """Return what lets a table have no policies, before it gets others."""
    return policies_taken(conn, table)
