"""What the catalogue says of captured tables, so that changes no trigger tells of are noticed.

Revision ID: dp0023
Revises: dp0022
"""

from datapatterns_migrations.placement import run

revision = "dp0023"
down_revision = "dp0022"
branch_labels = None
depends_on = None

COLUMNS = """
ALTER TABLE {schema}.change_consumer
  -- That of the server when the consumer was last advanced; another one after a failover.
  ADD COLUMN timeline integer,
  -- Why it was told to begin anew, until it is advanced again.
  ADD COLUMN restart_reason text;
ALTER TABLE {schema}.captured_table
  ADD COLUMN allows_row_security boolean NOT NULL DEFAULT false;
-- What capture_shape() said before everything was last read anew; NULL: it has to be.
ALTER TABLE {schema}.change_subscription ADD COLUMN shape text;
"""

SHAPE = """
-- A digest of what decides which rows a captured table has and who logs their changes: partitions,
-- capturing triggers, captured columns. With their xmin, so that what was undone is seen as well.
-- NULL if some changes go unlogged as things are.
-- Each statement looks rows up by the oids of the table and its partitions. A planner that does
-- not know these would rather read whole catalogues, which takes a hundred times as long.
CREATE FUNCTION {schema}.capture_shape(p_log_name text) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    library oid := '{schema}'::regnamespace;
    suffix text := substr(p_log_name, 12);  -- after 'change_log_'
    logs oid := (SELECT p.oid FROM pg_proc AS p
                  WHERE p.pronamespace = library AND p.proname = 'capture_' || suffix);
    marks oid := (SELECT p.oid FROM pg_proc AS p
                   WHERE p.pronamespace = library AND p.proname = 'capture_move_' || suffix);
    source oid;
    is_partitioned boolean;
    allowed boolean;
    members oid[];
    columns name[];
    moved name[];
    is_whole boolean;
    tree text;
    triggers text;
    attributes text;
BEGIN
    SELECT c.oid, c.relkind = 'p', t.allows_row_security INTO source, is_partitioned, allowed
      FROM {schema}.captured_table AS t
      JOIN pg_namespace AS n ON n.nspname = t.table_schema
      JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = t.table_name
     WHERE t.log_name = p_log_name;
    IF source IS NULL OR logs IS NULL OR is_partitioned AND marks IS NULL
       OR EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = source) THEN
        RETURN NULL;
    END IF;
    WITH RECURSIVE below (oid, is_attached, fact) AS (
        SELECT source, true, source::text
        UNION ALL
        SELECT i.inhrelid, is_partitioned AND NOT i.inhdetachpending,
               i.inhrelid || ' ' || i.inhparent || ' ' || i.xmin
          FROM below JOIN pg_inherits AS i ON i.inhparent = below.oid)
    SELECT array_agg(b.oid), bool_and(b.is_attached), string_agg(b.fact, ',' ORDER BY b.oid)
      INTO members, is_whole, tree FROM below AS b;
    IF NOT is_whole
       OR EXISTS (SELECT FROM pg_class AS c WHERE c.oid = ANY (members)
                     AND (c.relkind NOT IN ('r', 'p') OR c.relpersistence <> 'p'
                          OR c.relrowsecurity AND NOT allowed))
       OR EXISTS (SELECT FROM pg_subscription_rel AS s WHERE s.srrelid = ANY (members)) THEN
        RETURN NULL;
    END IF;

    -- For each statement AFTER INSERT 4, DELETE 8, UPDATE 16, TRUNCATE 32; of partitioned tables
    -- for each row BEFORE UPDATE 19, and nothing of that kind later: they fire by name.
    SELECT count(*) = cardinality(members) AND bool_and(t.is_whole),
           string_agg(t.fact, ',' ORDER BY t.relation)
      INTO is_whole, triggers
      FROM (SELECT g.tgrelid AS relation,
                   coalesce(bit_or(g.tgtype) FILTER (
                       WHERE g.tgfoid = logs AND g.tgenabled = 'A'
                         AND g.tgtype IN (4, 8, 16, 32)) = 60, false)
                   AND (NOT is_partitioned OR
                        bool_or(g.tgfoid = marks AND g.tgenabled = 'A' AND g.tgtype = 19)
                        AND NOT bool_or(g.tgtype & 19 = 19 AND g.tgname >= '~'
                                        AND g.tgname !~ '^~[a-z0-9_]+_capture_move$')) AS is_whole,
                   string_agg(g.oid || ' ' || g.xmin || ' ' || g.tgenabled::text, ','
                              ORDER BY g.oid) FILTER (WHERE g.tgfoid IN (logs, marks)) AS fact
              FROM pg_trigger AS g WHERE g.tgrelid = ANY (members) GROUP BY g.tgrelid) AS t;
    IF NOT is_whole THEN
        RETURN NULL;
    END IF;
    IF is_partitioned THEN
        -- A later partition may be partitioned by columns that nobody looks at yet.
        moved := ARRAY (
            SELECT a.attname FROM pg_trigger AS g
              JOIN pg_depend AS d ON d.classid = 'pg_trigger'::regclass AND d.objid = g.oid
               AND d.refclassid = 'pg_class'::regclass AND d.refobjid = source
              JOIN pg_attribute AS a ON a.attrelid = source AND a.attnum = d.refobjsubid
             WHERE g.tgrelid = source AND g.tgfoid = marks);
        IF EXISTS (
            SELECT FROM pg_partitioned_table AS p
              JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = p.partrelid
               AND d.objsubid > 0 AND d.refclassid = 'pg_class'::regclass
               AND d.refobjid = p.partrelid AND d.refobjsubid = 0 AND d.deptype = 'i'
              JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = d.objsubid
             WHERE p.partrelid = ANY (members) AND a.attname <> ALL (moved)) THEN
            RETURN NULL;
        END IF;
    END IF;

    columns := ARRAY (
        SELECT a.attname FROM pg_class AS l JOIN pg_attribute AS a ON a.attrelid = l.oid
         WHERE l.relnamespace = library AND l.relname = p_log_name AND a.attnum > 0
           AND NOT a.attisdropped);
    SELECT string_agg(
               a.attrelid || ' ' || a.attnum || ' ' || a.xmin
               -- What a generated column is computed by.
               || CASE WHEN a.attgenerated <> '' THEN
                      (SELECT ' ' || d.oid || ' ' || d.xmin FROM pg_attrdef AS d
                        WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum) ELSE '' END,
               ',' ORDER BY a.attrelid, a.attnum)
      INTO attributes
      FROM pg_attribute AS a
     WHERE a.attrelid = ANY (members) AND a.attname = ANY (columns) AND a.attnum > 0;
    RETURN md5(concat_ws(';', tree, triggers, attributes));
END $$;

-- Whether consumer p_name can no longer go by its logs alone: something about its tables changed
-- since everything was last read anew, or is not captured. True where nothing is known.
CREATE FUNCTION {schema}.capture_changed(p_name text) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN NOT EXISTS (SELECT FROM {schema}.change_consumer AS c WHERE c.name = p_name)
        OR EXISTS (SELECT FROM {schema}.change_subscription AS s
                    WHERE s.consumer = p_name
                      AND (s.shape IS NULL
                           OR s.shape IS DISTINCT FROM {schema}.capture_shape(s.log_name)));
END $$;
"""


def upgrade() -> None:
    run(COLUMNS)
    run(SHAPE)


def downgrade() -> None:
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.captured_table AS t
                 JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.table_schema
                 JOIN pg_catalog.pg_class AS c
                   ON c.relnamespace = n.oid AND c.relname = t.table_name
                WHERE c.relkind = 'p' OR t.allows_row_security) THEN
        RAISE EXCEPTION 'partitioned tables, or some with row-level security, are captured'
            USING HINT = 'Release them first, with ChangeLog.release().';
    END IF;
END $$;
DROP FUNCTION {schema}.capture_changed(text), {schema}.capture_shape(text);
ALTER TABLE {schema}.change_subscription DROP COLUMN shape;
ALTER TABLE {schema}.captured_table DROP COLUMN allows_row_security;
ALTER TABLE {schema}.change_consumer DROP COLUMN restart_reason, DROP COLUMN timeline;
""")
