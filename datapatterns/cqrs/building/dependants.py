"""What is bound to a table rather than to its name, so that it would stay with the old one."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, text

from datapatterns.cqrs.building.relations import Relation

# What a table has by itself (its rows' type, constraints, indexes, defaults, triggers, policies,
# statistics, places in publications) comes along or is moved. All else is somebody's.
_DEPENDANTS: Final = text("""
WITH ours(oid) AS (SELECT unnest(CAST(:oids AS oid[]))),
relied_on(classid, objid) AS (
    SELECT 'pg_catalog.pg_class'::regclass::oid, oid FROM ours
    UNION ALL
    SELECT 'pg_catalog.pg_type'::regclass::oid, c.reltype
    FROM pg_catalog.pg_class c JOIN ours ON ours.oid = c.oid
    UNION ALL
    SELECT 'pg_catalog.pg_type'::regclass::oid, t.typarray
    FROM pg_catalog.pg_class c JOIN ours ON ours.oid = c.oid
    JOIN pg_catalog.pg_type t ON t.oid = c.reltype WHERE t.typarray <> 0
),
others AS (
    SELECT DISTINCT d.classid, d.objid, d.objsubid
    FROM pg_catalog.pg_depend d
    JOIN relied_on r ON (d.refclassid, d.refobjid) = (r.classid, r.objid)
    WHERE d.deptype = 'n'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k JOIN ours ON ours.oid = k.conrelid
                      WHERE d.classid = 'pg_catalog.pg_constraint'::regclass AND k.oid = d.objid)
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_index x JOIN ours ON ours.oid = x.indrelid
                      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND x.indexrelid = d.objid)
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t JOIN ours ON ours.oid = t.tgrelid
                      WHERE d.classid = 'pg_catalog.pg_trigger'::regclass AND t.oid = d.objid)
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_policy p JOIN ours ON ours.oid = p.polrelid
                      WHERE d.classid = 'pg_catalog.pg_policy'::regclass AND p.oid = d.objid)
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_attrdef f JOIN ours ON ours.oid = f.adrelid
                      WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass AND f.oid = d.objid)
      AND d.classid NOT IN ('pg_catalog.pg_publication_rel'::regclass,
                            'pg_catalog.pg_statistic_ext'::regclass)
)
SELECT coalesce(
    (SELECT format('%s %s', CASE v.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                                           ELSE 'rule ' || w.rulename || ' on' END, v.oid::regclass)
     FROM pg_catalog.pg_rewrite w JOIN pg_catalog.pg_class v ON v.oid = w.ev_class
     WHERE o.classid = 'pg_catalog.pg_rewrite'::regclass AND w.oid = o.objid),
    (SELECT format('foreign key %I of %s', k.conname, k.conrelid::regclass)
     FROM pg_catalog.pg_constraint k
     WHERE o.classid = 'pg_catalog.pg_constraint'::regclass AND k.oid = o.objid
       AND k.contype = 'f'),
    pg_describe_object(o.classid, o.objid, o.objsubid)) AS dependant
FROM others o
UNION
SELECT format('rule %I on %s', w.rulename, w.ev_class::regclass)
FROM pg_catalog.pg_rewrite w JOIN ours ON ours.oid = w.ev_class
UNION
SELECT format('captured changes of %s, for a materialized view or an index table',
              t.tgrelid::regclass)
FROM pg_catalog.pg_trigger t JOIN ours ON ours.oid = t.tgrelid
JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
WHERE NOT t.tgisinternal AND n.nspname = :library
ORDER BY 1
""")


def find_dependants(
    conn: Connection, tables: Sequence[Relation], *, library_schema: str
) -> list[str]:
    """Return what relies on ``tables`` and is not of them, as PostgreSQL describes it."""
    oids = [table.oid for table in tables]
    return list(conn.scalars(_DEPENDANTS, {"oids": oids, "library": library_schema}))
