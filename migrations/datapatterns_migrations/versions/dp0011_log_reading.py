"""What readers of the log need: the persisted mark.

Revision ID: dp0011
Revises: dp0010
"""

from datapatterns_migrations.placement import run

revision = "dp0011"
down_revision = "dp0010"
branch_labels = None
depends_on = None

MARK = """
-- Up to where the log is final, for readers that cannot look at fences: in older snapshots, on a
-- standby. No row until somebody publishes, so that nobody takes silence for an empty log.
CREATE TABLE {schema}.mark (
    one boolean NOT NULL DEFAULT true
        CONSTRAINT pk_mark PRIMARY KEY CONSTRAINT ck_mark_one CHECK (one),
    position bigint NOT NULL,
    at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Who sees the row sees every event up to it: their writers committed before the mark was taken.
CREATE FUNCTION {schema}.publish_mark() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reached bigint := {schema}.high_water_mark();
    moment timestamptz := clock_timestamp();
    stored record;
BEGIN
    SELECT m.position, m.at INTO stored FROM {schema}.mark AS m;
    IF stored.position > pg_sequence_last_value('{schema}.event_position') THEN
        RAISE EXCEPTION 'the published mark % lies beyond the log', stored.position
            USING HINT = 'Was a part of the database restored? See setval() on event_position.';
    END IF;
    -- Not by ON CONFLICT alone, which locks the row and so writes, even where nothing changes.
    IF stored.position >= reached AND stored.at > moment - interval '1 s' THEN
        RETURN reached;
    END IF;
    -- Who reads up to the mark may keep its checkpoint outside of this database: what a crash
    -- could undo must not show. The setting lasts until the transaction ends.
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    INSERT INTO {schema}.mark AS m (position, at) VALUES (reached, moment)
        ON CONFLICT (one) DO UPDATE
       SET position = greatest(m.position, excluded.position), at = greatest(m.at, excluded.at);
    RETURN reached;
END $$;
REVOKE ALL ON FUNCTION {schema}.publish_mark() FROM PUBLIC;

-- Who could read events can read how far they are final.
DO $$
DECLARE
    held record;
BEGIN
    FOR held IN
        SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC'
                        ELSE quote_ident(pg_get_userbyid(grantee)) END AS role
          FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(c.relacl)
         WHERE c.oid = '{schema}.event'::regclass AND privilege_type = 'SELECT'
    LOOP
        EXECUTE format('GRANT SELECT ON {schema}.mark TO %s', held.role);
    END LOOP;
END $$;
"""


def upgrade() -> None:
    run(MARK)


def downgrade() -> None:
    run("DROP FUNCTION {schema}.publish_mark();")
    run("DROP TABLE {schema}.mark;")
