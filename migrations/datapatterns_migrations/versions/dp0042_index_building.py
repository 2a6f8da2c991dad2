"""Who builds an index over shards, how far it is, and a shard that refuses to read it till then.

Revision ID: dp0042
Revises: dp0041
"""

from datapatterns_migrations.placement import run

revision = "dp0042"
down_revision = "dp0041"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
    ALTER TABLE {schema}.index_table
        DROP CONSTRAINT ck_index_table_state,
        ADD CONSTRAINT ck_index_table_state
            CHECK (state IN ('building', 'verifying', 'ready', 'failed', 'dropping'));
    ALTER TABLE {schema}.index_backfill
        ADD COLUMN worker uuid,
        ADD COLUMN lease_until timestamptz,
        -- about how many rows there were, as the planner knew
        ADD COLUMN rows_expected bigint,
        ADD CONSTRAINT ck_index_backfill_leased CHECK ((worker IS NULL) = (lease_until IS NULL));

    -- What a look-up calls if its own look at the state has found that nobody may read the index.
    CREATE FUNCTION {schema}.refuse_index(in_name text, in_fingerprint text) RETURNS boolean
        LANGUAGE plpgsql VOLATILE PARALLEL SAFE AS $$
    DECLARE
        found record;
    BEGIN
        SELECT state, fingerprint INTO found FROM {schema}.index_table WHERE name = in_name;
        RAISE EXCEPTION 'index table % must not be read', in_name USING ERRCODE = 'SD004',
            DETAIL = CASE WHEN found IS NULL THEN 'missing'
                WHEN found.fingerprint <> in_fingerprint THEN 'changed' ELSE found.state END;
    END $$;
    """)


def downgrade() -> None:
    run("""
    DROP FUNCTION {schema}.refuse_index(text, text);
    ALTER TABLE {schema}.index_backfill
        DROP CONSTRAINT ck_index_backfill_leased,
        DROP COLUMN worker,
        DROP COLUMN lease_until,
        DROP COLUMN rows_expected;
    UPDATE {schema}.index_table SET state = 'failed' WHERE state = 'dropping';
    ALTER TABLE {schema}.index_table
        DROP CONSTRAINT ck_index_table_state,
        ADD CONSTRAINT ck_index_table_state
            CHECK (state IN ('building', 'verifying', 'ready', 'failed'));
    """)
