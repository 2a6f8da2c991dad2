"""What is known of each index table, and how far the building of it has come.

The index tables themselves, their triggers and guard views are created from their declarations.

Revision ID: dp0007
Revises: dp0006
"""

from datapatterns_migrations.placement import run

revision = "dp0007"
down_revision = "dp0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
    CREATE TABLE {schema}.index_table (
        index_id int GENERATED ALWAYS AS IDENTITY,
        name text NOT NULL,
        base_table text NOT NULL,
        is_unique boolean NOT NULL,
        mode text NOT NULL,
        state text NOT NULL,
        -- of key, predicate, primary key and included columns: a process that declares
        -- otherwise is refused
        fingerprint text NOT NULL,
        CONSTRAINT pk_index_table PRIMARY KEY (index_id),
        CONSTRAINT uq_index_table_name UNIQUE (name),
        CONSTRAINT ck_index_table_mode CHECK (mode IN ('local', 'reserve', '2pc', 'async')),
        CONSTRAINT ck_index_table_state CHECK (state IN ('building', 'ready'))
    );

    CREATE TABLE {schema}.index_backfill (
        index_id int NOT NULL,
        -- columns of the primary key by name; null before the first chunk
        after_pk jsonb,
        rows_done bigint NOT NULL DEFAULT 0,
        done boolean NOT NULL DEFAULT false,
        CONSTRAINT pk_index_backfill PRIMARY KEY (index_id),
        CONSTRAINT fk_index_backfill_index_id_index_table
            FOREIGN KEY (index_id) REFERENCES {schema}.index_table ON DELETE CASCADE,
        CONSTRAINT ck_index_backfill_counted CHECK (rows_done >= 0)
    );
    """)


def downgrade() -> None:
    run("""
    DROP TABLE {schema}.index_backfill;
    DROP TABLE {schema}.index_table;
    """)
