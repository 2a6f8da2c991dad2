"""What tables a shard has, told so that two shards can be compared.

The words are those of the server (`pg_get_constraintdef` and the like), so servers are compared
that are of one major version.
"""

from sqlalchemy import Connection, func, select, text

from datapatterns.sharding.migrating.drift import Catalog, CatalogPart
from datapatterns.sql.metadata import DEFAULT_SCHEMA

_ORDER = "column order"


def read_catalog(conn: Connection, *, schema: str = DEFAULT_SCHEMA) -> Catalog:
    """Return what the server has; sets the caller's search path, up to the transaction's end."""
    # With an empty path the server writes every name with its schema, whoever's path holds it. A
    # role's time limit is meant for its everyday queries.
    settings = {"search_path": "", "statement_timeout": "0"}
    conn.execute(select(*(func.set_config(name, to, True) for name, to in settings.items())))
    rows = conn.execute(_PARTS, {"library": schema}).all()
    return Catalog(
        frozenset(
            CatalogPart(row.owner, row.kind, row.name, row.line)
            for row in rows
            if row.kind != _ORDER
        ),
        {row.owner: row.line for row in rows if row.kind == _ORDER},
    )


def invalid_indexes(conn: Connection, *, schema: str = DEFAULT_SCHEMA) -> list[str]:
    """Return the indexes that CREATE INDEX CONCURRENTLY has left behind, or is at."""
    return list(conn.scalars(_INVALID, {"library": schema}))


_PARTS = text("""
WITH spaces AS (
    SELECT n.oid, n.nspname FROM pg_namespace n
    WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', :library)
), members AS (
    SELECT d.classid, d.objid FROM pg_depend d WHERE d.deptype = 'e'
), relations AS (
    SELECT c.oid, format('%I.%I', s.nspname, c.relname) AS owner, c.relkind, c.relpersistence,
           c.relreplident, c.relrowsecurity, c.relforcerowsecurity, c.relispartition,
           c.relpartbound, c.reltype
    FROM pg_class c JOIN spaces s ON s.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
      AND NOT EXISTS (SELECT FROM members m
                      WHERE m.classid = 'pg_class'::regclass AND m.objid = c.oid)
), types AS (
    SELECT t.oid, format('%I.%I', s.nspname, t.typname) AS owner, t.typtype, t.typbasetype,
           t.typtypmod, t.typnotnull, t.typdefault, t.typcollation
    FROM pg_type t JOIN spaces s ON s.oid = t.typnamespace
    WHERE t.typtype IN ('e', 'd')
      AND NOT EXISTS (SELECT FROM members m
                      WHERE m.classid = 'pg_type'::regclass AND m.objid = t.oid)
), parts (owner, kind, name, line) AS (
    SELECT owner, 'object', '', format('%s persistence %s replica identity %s row security %s %s%s',
        CASE relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view'
            WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' ELSE 'foreign table' END,
        relpersistence, relreplident, relrowsecurity, relforcerowsecurity,
        ' partition ' || pg_get_expr(relpartbound, oid))
    FROM relations
    UNION ALL
    SELECT owner, 'definition', '', pg_get_viewdef(oid) FROM relations WHERE relkind IN ('v', 'm')
    UNION ALL
    SELECT owner, 'definition', '', format('as %s start %s increment %s minimum %s maximum %s'
        ' cache %s cycle %s', format_type(q.seqtypid, NULL), q.seqstart, q.seqincrement, q.seqmin,
        q.seqmax, q.seqcache, q.seqcycle)
    FROM relations r JOIN pg_sequence q ON q.seqrelid = r.oid
    UNION ALL
    SELECT owner, 'partition key', '', pg_get_partkeydef(oid) FROM relations WHERE relkind = 'p'
    UNION ALL
    SELECT r.owner, 'column', a.attname::text, format('%s%s%s%s%s%s',
        format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN ' NOT NULL' END,
        ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
        ' GENERATED ' || nullif(a.attgenerated::text, ''),
        ' IDENTITY ' || nullif(a.attidentity::text, ''),
        ' COLLATE ' || nullif(a.attcollation, 0)::regcollation::text)
    FROM relations r
    JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    WHERE r.relkind <> 'S'
    UNION ALL
    -- NOT NULL is a constraint since PostgreSQL 18; the columns say it already.
    SELECT r.owner, 'constraint', o.conname::text, pg_get_constraintdef(o.oid)
    FROM relations r JOIN pg_constraint o ON o.conrelid = r.oid AND o.contype <> 'n'
    UNION ALL
    SELECT r.owner, 'index', x.relname::text, format('%s%s', pg_get_indexdef(i.indexrelid),
        CASE WHEN NOT i.indisvalid THEN ' (not valid)' END)
    FROM relations r JOIN pg_index i ON i.indrelid = r.oid JOIN pg_class x ON x.oid = i.indexrelid
    UNION ALL
    SELECT r.owner, 'trigger', t.tgname::text, format('%s%s', pg_get_triggerdef(t.oid),
        CASE WHEN t.tgenabled <> 'O' THEN ' (enabled: ' || t.tgenabled::text || ')' END)
    FROM relations r JOIN pg_trigger t ON t.tgrelid = r.oid AND NOT t.tgisinternal
    WHERE t.tgname !~ '^zz_datapatterns_'
    UNION ALL
    SELECT r.owner, 'rule', w.rulename::text, pg_get_ruledef(w.oid)
    FROM relations r JOIN pg_rewrite w ON w.ev_class = r.oid AND w.rulename <> '_RETURN'
    UNION ALL
    SELECT r.owner, 'policy', p.polname::text, format('%s %s%s%s', p.polpermissive, p.polcmd,
        ' USING ' || pg_get_expr(p.polqual, p.polrelid),
        ' CHECK ' || pg_get_expr(p.polwithcheck, p.polrelid))
    FROM relations r JOIN pg_policy p ON p.polrelid = r.oid
    UNION ALL
    SELECT t.owner, 'labels', '', string_agg(quote_literal(e.enumlabel), ' < '
        ORDER BY e.enumsortorder)
    FROM types t JOIN pg_enum e ON e.enumtypid = t.oid GROUP BY t.owner
    UNION ALL
    SELECT t.owner, 'definition', '', format('domain over %s%s%s%s',
        format_type(t.typbasetype, t.typtypmod), CASE WHEN t.typnotnull THEN ' NOT NULL' END,
        ' DEFAULT ' || t.typdefault, ' COLLATE ' || nullif(t.typcollation, 0)::regcollation::text)
    FROM types t WHERE t.typtype = 'd'
    UNION ALL
    SELECT t.owner, 'constraint', o.conname::text, pg_get_constraintdef(o.oid)
    FROM types t JOIN pg_constraint o ON o.contypid = t.oid AND o.contype <> 'n'
    UNION ALL
    SELECT format('%I.%I', s.nspname, p.proname), 'routine',
        pg_get_function_identity_arguments(p.oid),
        CASE WHEN p.prokind = 'a' THEN 'aggregate' ELSE pg_get_functiondef(p.oid) END
    FROM pg_proc p JOIN spaces s ON s.oid = p.pronamespace
    WHERE NOT EXISTS (SELECT FROM members m
                      WHERE m.classid = 'pg_proc'::regclass AND m.objid = p.oid)
    UNION ALL
    SELECT r.owner, 'column order', '', string_agg(a.attname, ', ' ORDER BY a.attnum)
    FROM relations r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
        AND NOT a.attisdropped
    WHERE r.relkind IN ('r', 'p', 'f') GROUP BY r.owner
)
SELECT owner, kind, name, line FROM parts
""")

_INVALID = text(
    "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_index i"
    " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
    # An index on a partitioned table is not valid until all partitions have theirs, on purpose.
    " WHERE NOT i.indisvalid AND c.relkind = 'i' AND n.nspname !~ '^pg_'"
    " AND n.nspname <> :library ORDER BY 1"
)
