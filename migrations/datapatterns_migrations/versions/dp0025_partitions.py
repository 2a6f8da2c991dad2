"""Which partitions captured tables had, so that only what came, went or changed is read anew.

Revision ID: dp0025
Revises: dp0024
"""

from datapatterns_migrations.placement import run

revision = "dp0025"
down_revision = "dp0024"
branch_labels = None
depends_on = None

COLUMNS = """
-- What capture_partitions() said before everything was last read anew; NULL: that is not known.
ALTER TABLE {schema}.change_subscription ADD COLUMN partitions jsonb;
DO $$
DECLARE
    log text;
BEGIN
    -- Which partition was truncated, for a row of sign 0; NULL: everything may have changed.
    FOR log IN SELECT c.oid::regclass FROM {schema}.captured_table AS t
                 JOIN pg_catalog.pg_class AS c
                   ON c.relnamespace = '{schema}'::regnamespace AND c.relname = t.log_name
    LOOP
        EXECUTE format('ALTER TABLE %s ADD COLUMN change_partition jsonb', log);
    END LOOP;
END $$;
"""

PARTITIONS = """
-- What a partition holds of its parent's rows: by what columns, and which values of these. A column
-- is NULL where it is an expression, or of a type, an order or a collation of its own.
-- The settings are those under which everybody reads the same from a value's text.
CREATE FUNCTION {schema}.partition_bound(p_relation oid) RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD' SET timezone = 'UTC' SET standard_conforming_strings = on AS $$
    SELECT jsonb_build_object(
        'by', p.partstrat,
        'columns', (
            SELECT jsonb_agg(CASE WHEN o.opcdefault AND k.collated = a.attcollation
                                   AND (t.typtype = 'e' OR t.oid IN (
                                        'int2'::regtype, 'int4'::regtype, 'int8'::regtype,
                                        'numeric'::regtype, 'text'::regtype, 'varchar'::regtype,
                                        'bpchar'::regtype, 'uuid'::regtype, 'bool'::regtype,
                                        'date'::regtype, 'timestamp'::regtype,
                                        'timestamptz'::regtype))
                                  THEN a.attname END ORDER BY k.place)
              FROM unnest(p.partattrs::int2[], p.partclass::oid[], p.partcollation::oid[])
                   WITH ORDINALITY AS k (attnum, class, collated, place)
              LEFT JOIN pg_attribute AS a
                ON a.attrelid = p.partrelid AND a.attnum = k.attnum AND k.attnum > 0
              LEFT JOIN pg_type AS t ON t.oid = a.atttypid
              LEFT JOIN pg_opclass AS o ON o.oid = k.class),
        'bound', pg_get_expr(c.relpartbound, 0))
      FROM pg_inherits AS i
      JOIN pg_partitioned_table AS p ON p.partrelid = i.inhparent
      JOIN pg_class AS c ON c.oid = i.inhrelid
     WHERE i.inhrelid = p_relation
$$;

-- The bounds of a partition and of all that it is a partition of, from the table downwards; none
-- for a table that is no partition.
CREATE FUNCTION {schema}.partition_bounds(p_relation oid) RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE above (oid, height) AS (
        SELECT p_relation, 0
        UNION ALL
        SELECT i.inhparent, above.height + 1
          FROM above JOIN pg_inherits AS i ON i.inhrelid = above.oid)
    SELECT coalesce(jsonb_agg({schema}.partition_bound(above.oid) ORDER BY above.height DESC)
                        FILTER (WHERE above.height < (SELECT max(height) FROM above)), '[]')
      FROM above
$$;

-- A captured table and its partitions at all depths, by oid: the bounds of each, and a digest of
-- what else decides which rows it has and who logs their changes, as capture_shape() has it of all
-- of them. The digest is NULL where changes go unlogged as things are. NULL instead of all of it
-- where that does not stay within partitions, and for tables that have none.
CREATE FUNCTION {schema}.capture_partitions(p_log_name text) RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    library oid := '{schema}'::regnamespace;
    suffix text := substr(p_log_name, 12);  -- after 'change_log_'
    logs oid := (SELECT p.oid FROM pg_proc AS p
                  WHERE p.pronamespace = library AND p.proname = 'capture_' || suffix);
    marks oid := (SELECT p.oid FROM pg_proc AS p
                   WHERE p.pronamespace = library AND p.proname = 'capture_move_' || suffix);
    source oid;
    allowed boolean;
    is_whole boolean;
    members oid[];
    columns name[];
    moved name[];
    found jsonb;
BEGIN
    SELECT c.oid, t.allows_row_security INTO source, allowed
      FROM {schema}.captured_table AS t
      JOIN pg_namespace AS n ON n.nspname = t.table_schema
      JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = t.table_name
                        AND c.relkind = 'p'
     WHERE t.log_name = p_log_name;
    IF source IS NULL OR logs IS NULL OR marks IS NULL
       OR EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = source) THEN
        RETURN NULL;
    END IF;
    WITH RECURSIVE below (oid, is_attached) AS (
        SELECT source, true
        UNION ALL
        SELECT i.inhrelid, NOT i.inhdetachpending
          FROM below JOIN pg_inherits AS i ON i.inhparent = below.oid)
    SELECT array_agg(b.oid), bool_and(b.is_attached) INTO members, is_whole FROM below AS b;
    moved := ARRAY (
        SELECT a.attname FROM pg_trigger AS g
          JOIN pg_depend AS d ON d.classid = 'pg_trigger'::regclass AND d.objid = g.oid
           AND d.refclassid = 'pg_class'::regclass AND d.refobjid = source
          JOIN pg_attribute AS a ON a.attrelid = source AND a.attnum = d.refobjsubid
         WHERE g.tgrelid = source AND g.tgfoid = marks);
    IF NOT is_whole OR EXISTS (
        SELECT FROM pg_partitioned_table AS p
          JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = p.partrelid
           AND d.objsubid > 0 AND d.refclassid = 'pg_class'::regclass
           AND d.refobjid = p.partrelid AND d.refobjsubid = 0 AND d.deptype = 'i'
          JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = d.objsubid
         WHERE p.partrelid = ANY (members) AND a.attname <> ALL (moved)) THEN
        RETURN NULL;
    END IF;
    columns := ARRAY (
        SELECT a.attname FROM pg_class AS l JOIN pg_attribute AS a ON a.attrelid = l.oid
         WHERE l.relnamespace = library AND l.relname = p_log_name AND a.attnum > 0
           AND NOT a.attisdropped);
    WITH RECURSIVE below (oid, fact, bounds) AS (
        SELECT source, '', '[]'::jsonb
        UNION ALL
        SELECT i.inhrelid, i.inhparent || ' ' || i.xmin,
               below.bounds || {schema}.partition_bound(i.inhrelid)
          FROM below JOIN pg_inherits AS i ON i.inhparent = below.oid)
    SELECT jsonb_object_agg(b.oid::text, jsonb_build_object(
               'bounds', b.bounds,
               'fact', CASE WHEN r.is_whole AND t.is_whole
                            THEN md5(concat_ws(';', b.fact, t.fact, r.fact)) END))
      INTO found
      FROM below AS b
     CROSS JOIN LATERAL (
        SELECT c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
               AND (NOT c.relrowsecurity OR allowed)
               AND NOT EXISTS (SELECT FROM pg_subscription_rel AS s WHERE s.srrelid = c.oid)
                   AS is_whole,
               (SELECT string_agg(
                           a.attnum || ' ' || a.xmin
                           || CASE WHEN a.attgenerated <> '' THEN
                                  (SELECT ' ' || d.oid || ' ' || d.xmin FROM pg_attrdef AS d
                                    WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum)
                                  ELSE '' END, ',' ORDER BY a.attnum)
                  FROM pg_attribute AS a
                 WHERE a.attrelid = c.oid AND a.attname = ANY (columns) AND a.attnum > 0) AS fact
          FROM pg_class AS c WHERE c.oid = b.oid) AS r
     CROSS JOIN LATERAL (
        SELECT coalesce(bit_or(g.tgtype) FILTER (
                   WHERE g.tgfoid = logs AND g.tgenabled = 'A'
                     AND g.tgtype IN (4, 8, 16, 32)) = 60, false)
               AND coalesce(bool_or(g.tgfoid = marks AND g.tgenabled = 'A' AND g.tgtype = 19)
                   AND NOT bool_or(g.tgtype & 19 = 19 AND g.tgname >= '~'
                                   AND g.tgname !~ '^~[a-z0-9_]+_capture_move$'), false)
                   AS is_whole,
               string_agg(g.oid || ' ' || g.xmin || ' ' || g.tgenabled::text, ','
                          ORDER BY g.oid) FILTER (WHERE g.tgfoid IN (logs, marks)) AS fact
          FROM pg_trigger AS g WHERE g.tgrelid = b.oid) AS t;
    RETURN CASE WHEN found -> source::text ->> 'fact' IS NOT NULL
                THEN jsonb_build_object('table', source::text, 'members', found) END;
END $$;
"""


def upgrade() -> None:
    run(COLUMNS)
    run(PARTITIONS)


def downgrade() -> None:
    run("""
DO $$
DECLARE
    log text;
BEGIN
    IF EXISTS (SELECT FROM {schema}.captured_table AS t
                 JOIN pg_catalog.pg_proc AS p
                   ON p.pronamespace = '{schema}'::regnamespace
                  AND p.proname = 'capture_' || substr(t.log_name, 12)
                WHERE p.prosrc LIKE '%change_partition%') THEN
        RAISE EXCEPTION 'partitioned tables are captured'
            USING HINT = 'Release them first, with ChangeLog.release().';
    END IF;
    FOR log IN SELECT c.oid::regclass FROM {schema}.captured_table AS t
                 JOIN pg_catalog.pg_class AS c
                   ON c.relnamespace = '{schema}'::regnamespace AND c.relname = t.log_name
    LOOP
        EXECUTE format('ALTER TABLE %s DROP COLUMN change_partition', log);
    END LOOP;
END $$;
DROP FUNCTION {schema}.capture_partitions(text), {schema}.partition_bounds(oid),
              {schema}.partition_bound(oid);
ALTER TABLE {schema}.change_subscription DROP COLUMN partitions;
""")
