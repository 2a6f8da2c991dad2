"""How an index that is kept behind its writers stands, and why the building of one has failed.

Revision ID: dp0041
Revises: dp0040
"""

from datapatterns_migrations.placement import run

revision = "dp0041"
down_revision = "dp0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
    ALTER TABLE {schema}.index_table
        -- of mode async: all that was committed before is in it; null before the first time
        ADD COLUMN as_of timestamptz,
        -- of one that has failed: what was found, for people
        ADD COLUMN failure text,
        DROP CONSTRAINT ck_index_table_state,
        ADD CONSTRAINT ck_index_table_state
            CHECK (state IN ('building', 'verifying', 'ready', 'failed'));

    -- Two rows with one key of a unique index, found while it was built.
    CREATE TABLE {schema}.index_conflict (
        index_id int NOT NULL,
        number int NOT NULL,
        key jsonb NOT NULL,
        base_pk jsonb NOT NULL,
        -- who has the key
        holder_pk jsonb NOT NULL,
        found_at timestamptz NOT NULL DEFAULT statement_timestamp(),
        CONSTRAINT pk_index_conflict PRIMARY KEY (index_id, number),
        CONSTRAINT fk_index_conflict_index_id_index_table
            FOREIGN KEY (index_id) REFERENCES {schema}.index_table ON DELETE CASCADE
    );
    """)


def downgrade() -> None:
    run("""
    DROP TABLE {schema}.index_conflict;
    UPDATE {schema}.index_table SET state = 'building' WHERE state IN ('verifying', 'failed');
    ALTER TABLE {schema}.index_table
        DROP COLUMN as_of,
        DROP COLUMN failure,
        DROP CONSTRAINT ck_index_table_state,
        ADD CONSTRAINT ck_index_table_state CHECK (state IN ('building', 'ready'));
    """)
