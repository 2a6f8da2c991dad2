"""Write down what each materialized view consists of; tell how far its consumer is.

Revision ID: dp0022
Revises: dp0021
"""

from datapatterns_migrations.placement import run

revision = "dp0022"
down_revision = "dp0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.materialized_view) THEN
        RAISE EXCEPTION 'materialized views of an older kind are left'
            USING HINT = 'Drop them with the version that made them, then create them anew.';
    END IF;
END $$;
ALTER TABLE {schema}.materialized_view
  DROP CONSTRAINT ck_materialized_view_strategy,
  ADD CONSTRAINT ck_materialized_view_strategy
    CHECK (strategy IN ('counting', 'groups', 'rebuild')),
  ADD COLUMN blueprint jsonb NOT NULL;
ALTER TABLE {schema}.materialized_view RENAME COLUMN definition_hash TO digest;
COMMENT ON COLUMN {schema}.materialized_view.blueprint IS
  'all SQL that the view consists of, as it was declared when it was created';

-- For plain views of what is stored with what is pending: their readers need no right on
-- consumers, and get no answer where a snapshot says nothing.
CREATE FUNCTION {schema}.consumed_snapshot(consumer text) RETURNS pg_snapshot
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
BEGIN
    SELECT c.snapshot, c.populated, c.system_identifier, c.database_oid INTO found
      FROM {schema}.change_consumer c WHERE c.name = consumer;
    IF found IS NULL OR NOT found.populated THEN
        RAISE object_not_in_prerequisite_state
            USING MESSAGE = format('%s has not been populated', consumer),
                  HINT = 'Populate it, or read what is stored.';
    END IF;
    IF found.system_identifier <> (SELECT s.system_identifier FROM pg_control_system() s)
       OR found.database_oid <> (
           SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    THEN
        RAISE object_not_in_prerequisite_state
            USING MESSAGE = format('%s was last refreshed in another database', consumer),
                  HINT = 'Rebase the change log, then populate it.';
    END IF;
    RETURN found.snapshot;
END $$;
""")


def downgrade() -> None:
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.materialized_view) THEN
        RAISE EXCEPTION 'materialized views are left; drop them first, with drop()';
    END IF;
END $$;
DROP FUNCTION {schema}.consumed_snapshot(text);
ALTER TABLE {schema}.materialized_view RENAME COLUMN digest TO definition_hash;
ALTER TABLE {schema}.materialized_view
  DROP COLUMN blueprint,
  DROP CONSTRAINT ck_materialized_view_strategy,
  ADD CONSTRAINT ck_materialized_view_strategy CHECK (strategy IN ('counting', 'rebuild'));
""")
