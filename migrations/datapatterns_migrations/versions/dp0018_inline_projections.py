"""Projections that are kept in the transaction of the append.

Revision ID: dp0018
Revises: dp0017
"""

from datapatterns_migrations.placement import run

revision = "dp0018"
down_revision = "dp0017"
branch_labels = None
depends_on = None

GUARD = """
-- Names and versions are arguments of the trigger, not rows: however old a transaction's snapshot
-- is, a trigger that is there fires as it is. What the writer keeps, it says in a setting.
CREATE FUNCTION {schema}.guard_inline_projections() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept text[] := string_to_array(current_setting('datapatterns.kept_inline', true), ',');
    forgotten text;
BEGIN
    -- * are events that come back from the archive.
    SELECT a INTO forgotten FROM unnest(TG_ARGV) AS a
     WHERE a <> ALL (coalesce(kept, '{}')) AND '*' <> ALL (coalesce(kept, '{}'));
    IF forgotten IS NOT NULL THEN
        RAISE EXCEPTION 'this writer does not keep projection % (version %), which is kept inline',
            split_part(forgotten, ':', 1), split_part(forgotten, ':', 2)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Append by a store that declares it, or make the projection async first.';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION {schema}.guard_events(p_table regclass) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    kept text := (
        SELECT string_agg(quote_literal(p.name || ':' || p.version), ', ' ORDER BY p.name)
          FROM {schema}.projection AS p WHERE p.mode = 'inline' AND p.status = 'live');
BEGIN
    EXECUTE format('DROP TRIGGER IF EXISTS inline_guard ON %s', p_table);
    IF kept IS NOT NULL THEN
        EXECUTE format('CREATE TRIGGER inline_guard BEFORE INSERT ON %s FOR EACH STATEMENT'
            ' EXECUTE FUNCTION {schema}.guard_inline_projections(%s)', p_table, kept);
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER inline_guard', p_table);
    END IF;
END $$;

-- Change how the live version of a projection is kept. It waits for all who are appending, and
-- keeps others from it until the transaction ends: so the mark is the end of the log, and whoever
-- appends next meets the guard.
CREATE FUNCTION {schema}.set_projection_mode(p_name text, p_version int, p_mode text)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part regclass;
BEGIN
    LOCK TABLE {schema}.event IN SHARE ROW EXCLUSIVE MODE;
    UPDATE {schema}.projection AS p SET mode = p_mode
     WHERE p.name = p_name AND p.version = p_version AND p.status = 'live';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM {schema}.guard_events('{schema}.event');
    -- Not for what is routed to them, but one becomes the table when that is made whole again.
    FOR part IN SELECT inhrelid FROM pg_catalog.pg_inherits
                 WHERE inhparent = '{schema}.event'::regclass LOOP
        PERFORM {schema}.guard_events(part);
    END LOOP;
    RETURN true;
END $$;

REVOKE ALL ON FUNCTION {schema}.guard_events(regclass),
    {schema}.set_projection_mode(text, int, text) FROM PUBLIC;
"""

NEEDED_BY = """
-- The projections that still have to read what lies at or before a position.
CREATE OR REPLACE FUNCTION {schema}.projections_before(p_position bigint) RETURNS text[]
LANGUAGE sql STABLE AS $$
    SELECT array_agg(DISTINCT s.name || ' version ' || s.version)
      FROM {schema}.projection_shard AS s JOIN {schema}.projection AS p USING (name, version)
     WHERE p.status <> 'retired'{unless_inline}  -- one that failed may be resumed
       AND s.position < p_position
$$;
"""

PROTECT = """
CREATE OR REPLACE FUNCTION {schema}.protect_events(p_table regclass)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR TRUNCATE ON %s'
        ' FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change_of_events()', p_table);
    EXECUTE format('CREATE TRIGGER moves_only AFTER DELETE ON %s REFERENCING OLD TABLE AS gone'
        ' FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_loss_of_events()', p_table);
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger
                    WHERE tgrelid = p_table AND tgname = 'raise_fence') THEN
        EXECUTE format('CREATE TRIGGER raise_fence BEFORE INSERT ON %s'
            ' FOR EACH STATEMENT EXECUTE FUNCTION {schema}.raise_fence_before_insert()', p_table);
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER raise_fence', p_table);
    END IF;{guarding}
END $$;
"""


def upgrade() -> None:
    run(GUARD)
    run(NEEDED_BY.replace("{unless_inline}", " AND NOT (p.mode = 'inline' AND p.status = 'live')"))
    run(PROTECT.replace("{guarding}", "\n    PERFORM {schema}.guard_events(p_table);"))


def downgrade() -> None:
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.projection WHERE mode = 'inline') THEN
        RAISE EXCEPTION 'a projection is kept inline, and would be forgotten'
            USING HINT = 'Make it async first.';
    END IF;
END $$;
""")
    run(PROTECT.replace("{guarding}", ""))
    run(NEEDED_BY.replace("{unless_inline}", ""))
    run("""
DROP FUNCTION {schema}.set_projection_mode(text, int, text);
DROP FUNCTION {schema}.guard_events(regclass);
DROP FUNCTION {schema}.guard_inline_projections();
""")
