"""Give a table what the live one has beside its columns: rights, policies, options, comments.

All that is bound to a table by its number, so a rename does not bring it along. PostgreSQL writes
the statements itself, in the session that executes them, so that names mean there what they mean.
"""

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, TextClause, text

from datapatterns.cqrs.building.relations import Relation
from datapatterns.sql.composing import execute_written

_SAME_COLUMNS: Final = """
JOIN pg_catalog.pg_attribute b ON b.attrelid = :target AND b.attname = a.attname
  AND b.attnum > 0 AND NOT b.attisdropped
"""

_OWNER: Final = text("""
SELECT format('ALTER TABLE %s OWNER TO %I', CAST(:target AS oid)::regclass, o.rolname)
FROM pg_catalog.pg_class s JOIN pg_catalog.pg_class t ON t.oid = :target
JOIN pg_catalog.pg_roles o ON o.oid = s.relowner
WHERE s.oid = :source AND s.relowner <> t.relowner
""")

# Only while it is empty, or it would be written anew.
_KEPT_HOW: Final = text("""
SELECT format('ALTER TABLE %s SET UNLOGGED', CAST(:target AS oid)::regclass)
FROM pg_catalog.pg_class s JOIN pg_catalog.pg_class t ON t.oid = :target
WHERE s.oid = :source AND s.relpersistence = 'u' AND t.relpersistence <> 'u'
UNION ALL
SELECT format('ALTER TABLE %s SET TABLESPACE %I', CAST(:target AS oid)::regclass, p.spcname)
FROM pg_catalog.pg_class s JOIN pg_catalog.pg_class t ON t.oid = :target
JOIN pg_catalog.pg_tablespace p ON p.oid = s.reltablespace
WHERE s.oid = :source AND s.reltablespace <> t.reltablespace
""")

_COLLATIONS: Final = text(f"""
SELECT format('ALTER TABLE %s ALTER COLUMN %I TYPE %s COLLATE %s',
              CAST(:target AS oid)::regclass, a.attname,
              format_type(b.atttypid, b.atttypmod), a.attcollation::regcollation)
FROM pg_catalog.pg_attribute a {_SAME_COLUMNS}
JOIN pg_catalog.pg_type y ON y.oid = b.atttypid
WHERE a.attrelid = :source AND a.attnum > 0 AND NOT a.attisdropped
  AND a.atttypid = b.atttypid AND b.attgenerated = ''
  AND a.attcollation <> b.attcollation AND b.attcollation = y.typcollation
""")  # noqa: S608 -- a constant of this module

_COLUMNS: Final = text(f"""
SELECT format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE %s', CAST(:target AS oid)::regclass,
              a.attname, CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL'
                                           WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END)
FROM pg_catalog.pg_attribute a {_SAME_COLUMNS}
WHERE a.attrelid = :source AND a.attnum > 0 AND NOT a.attisdropped
  AND a.atttypid = b.atttypid AND a.attstorage <> b.attstorage
UNION ALL
SELECT format('ALTER TABLE %s ALTER COLUMN %I SET COMPRESSION %s', CAST(:target AS oid)::regclass,
              a.attname, CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4'
                                               ELSE 'default' END)
FROM pg_catalog.pg_attribute a {_SAME_COLUMNS}
WHERE a.attrelid = :source AND a.attnum > 0 AND NOT a.attisdropped
  AND a.atttypid = b.atttypid AND a.attcompression <> b.attcompression
UNION ALL
SELECT format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', CAST(:target AS oid)::regclass,
              a.attname, a.attstattarget)
FROM pg_catalog.pg_attribute a {_SAME_COLUMNS}
WHERE a.attrelid = :source AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attstattarget IS DISTINCT FROM b.attstattarget AND a.attstattarget IS NOT NULL
UNION ALL
SELECT format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', CAST(:target AS oid)::regclass,
              a.attname, pg_get_expr(d.adbin, d.adrelid))
FROM pg_catalog.pg_attribute a {_SAME_COLUMNS}
JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = :source AND a.attnum > 0 AND NOT a.attisdropped
  AND a.atttypid = b.atttypid AND a.attgenerated = '' AND b.attgenerated = ''
  AND b.attidentity = '' AND NOT b.atthasdef
  AND NOT EXISTS (  -- a sequence that belongs to the other table would go with it
      SELECT FROM pg_catalog.pg_depend o JOIN pg_catalog.pg_depend u ON u.refobjid = o.objid
      WHERE o.refobjid = :source AND o.deptype IN ('a', 'i')
        AND o.classid = 'pg_catalog.pg_class'::regclass
        AND u.classid = 'pg_catalog.pg_attrdef'::regclass AND u.objid = d.oid)
""")  # noqa: S608 -- a constant of this module

_OPTIONS: Final = text("""
SELECT format('ALTER TABLE %s SET (%s%I = %L)', CAST(:target AS oid)::regclass, o.prefix,
              split_part(o.option, '=', 1), substr(o.option, strpos(o.option, '=') + 1))
FROM (
    SELECT '' AS prefix, unnest(s.reloptions) AS option
    FROM pg_catalog.pg_class s WHERE s.oid = :source
    UNION ALL
    SELECT 'toast.', unnest(o.reloptions) FROM pg_catalog.pg_class s
    JOIN pg_catalog.pg_class o ON o.oid = s.reltoastrelid WHERE s.oid = :source
) o
""")

# With what was granted on by those who might do so: _RIGHTS gives it again, as the owner's.
_RIGHTS_TAKEN: Final = text("""
SELECT DISTINCT format('REVOKE ALL ON TABLE %s FROM %s CASCADE', CAST(:target AS oid)::regclass,
       CASE WHEN r.grantee = 0 THEN 'PUBLIC' ELSE r.grantee::regrole::text END)
FROM pg_catalog.pg_class t CROSS JOIN LATERAL (
    SELECT x.grantee FROM aclexplode(t.relacl) x
    UNION SELECT x.grantee FROM pg_catalog.pg_attribute a, aclexplode(a.attacl) x
    WHERE a.attrelid = t.oid
) r
WHERE t.oid = :target AND r.grantee <> t.relowner
""")

_RIGHTS: Final = text(f"""
SELECT format('GRANT %s ON TABLE %s TO %s%s', x.privilege_type, CAST(:target AS oid)::regclass,
              CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END,
              CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_catalog.pg_class s, aclexplode(s.relacl) x
WHERE s.oid = :source AND x.grantee <> s.relowner
UNION ALL
SELECT format('GRANT %s (%I) ON TABLE %s TO %s%s', x.privilege_type, a.attname,
              CAST(:target AS oid)::regclass,
              CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END,
              CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_catalog.pg_attribute a {_SAME_COLUMNS}
CROSS JOIN LATERAL aclexplode(a.attacl) x
WHERE a.attrelid = :source AND a.attnum > 0 AND NOT a.attisdropped
""")  # noqa: S608 -- a constant of this module

_ROW_SECURITY: Final = text("""
SELECT format('ALTER TABLE %s %s ROW LEVEL SECURITY', CAST(:target AS oid)::regclass,
              CASE WHEN s.relrowsecurity THEN 'ENABLE' ELSE 'DISABLE' END)
FROM pg_catalog.pg_class s JOIN pg_catalog.pg_class t ON t.oid = :target
WHERE s.oid = :source AND s.relrowsecurity <> t.relrowsecurity
UNION ALL
SELECT format('ALTER TABLE %s %s ROW LEVEL SECURITY', CAST(:target AS oid)::regclass,
              CASE WHEN s.relforcerowsecurity THEN 'FORCE' ELSE 'NO FORCE' END)
FROM pg_catalog.pg_class s JOIN pg_catalog.pg_class t ON t.oid = :target
WHERE s.oid = :source AND s.relforcerowsecurity <> t.relforcerowsecurity
""")

_POLICIES_TAKEN: Final = text("""
SELECT format('DROP POLICY %I ON %s', p.polname, CAST(:target AS oid)::regclass)
FROM pg_catalog.pg_policy p WHERE p.polrelid = :target
""")

_POLICIES: Final = text("""
SELECT format('CREATE POLICY %I ON %s AS %s FOR %s TO %s', p.polname,
              CAST(:target AS oid)::regclass,
              CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
              CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                            WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
              (SELECT string_agg(CASE WHEN o = 0 THEN 'PUBLIC' ELSE o::regrole::text END, ', ')
               FROM unnest(p.polroles) o))
       || coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '')
       || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '')
FROM pg_catalog.pg_policy p WHERE p.polrelid = :source ORDER BY p.polname
""")

_COMMENTS: Final = text(f"""
SELECT format('COMMENT ON TABLE %s IS %L', CAST(:target AS oid)::regclass, d.description)
FROM pg_catalog.pg_description d
WHERE d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = :source AND d.objsubid = 0
UNION ALL
SELECT format('COMMENT ON COLUMN %s.%I IS %L', CAST(:target AS oid)::regclass, a.attname,
              d.description)
FROM pg_catalog.pg_attribute a {_SAME_COLUMNS}
JOIN pg_catalog.pg_description d ON d.classoid = 'pg_catalog.pg_class'::regclass
  AND d.objoid = a.attrelid AND d.objsubid = a.attnum
WHERE a.attrelid = :source AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT format('COMMENT ON CONSTRAINT %I ON %s IS %L', k.conname, CAST(:target AS oid)::regclass,
              d.description)
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_constraint l ON l.conrelid = :target AND l.conname = k.conname
JOIN pg_catalog.pg_description d ON d.classoid = 'pg_catalog.pg_constraint'::regclass
  AND d.objoid = k.oid
WHERE k.conrelid = :source
""")  # noqa: S608 -- a constant of this module


def resemble_while_empty(conn: Connection, live: Relation, table: Relation) -> None:
    """Let a new table be kept as the live one is, and belong to whom that belongs to."""
    _apply(conn, (_KEPT_HOW, _COLLATIONS, _COLUMNS), live, table)


def resemble(conn: Connection, live: Relation, table: Relation) -> None:
    """Let a table have the owner, rights, row security, options and comments of the live one."""
    _apply(conn, (_OWNER, _OPTIONS, _RIGHTS_TAKEN, _RIGHTS, _ROW_SECURITY, _COMMENTS), live, table)


def policies_taken(conn: Connection, table: Relation) -> list[str]:
    """Return what drops the policies of a table."""
    return _written(conn, _POLICIES_TAKEN, table, table)


def policies(conn: Connection, live: Relation, table: Relation) -> list[str]:
    """Return what gives ``table`` the policies of ``live``, which may be the same table."""
    return _written(conn, _POLICIES, live, table)


def _apply(
    conn: Connection, aspects: Iterable[TextClause], live: Relation, table: Relation
) -> None:
    for aspect in aspects:
        for statement in _written(conn, aspect, live, table):
            execute_written(conn, statement)


def _written(conn: Connection, statement: TextClause, live: Relation, table: Relation) -> list[str]:
    return list(conn.scalars(statement, {"source": live.oid, "target": table.oid}))
