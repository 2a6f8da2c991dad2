"""Which captured tables a cache's relay follows, and what it forgets when they change.

Revision ID: dp0027
Revises: dp0026
"""

from datapatterns_migrations.placement import run

revision = "dp0027"
down_revision = "dp0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
CREATE TABLE {schema}.cache_capture (
    consumer    text NOT NULL CONSTRAINT fk_cache_capture_consumer_change_consumer
                REFERENCES {schema}.change_consumer ON DELETE CASCADE,
    log_name    text NOT NULL CONSTRAINT fk_cache_capture_log_name_captured_table
                REFERENCES {schema}.captured_table,
    table_tag   text NOT NULL,
    key_columns text[] NOT NULL,
    tag_columns text[] NOT NULL,
    caches      text[] NOT NULL,
    CONSTRAINT pk_cache_capture PRIMARY KEY (consumer, log_name, table_tag)
);
CREATE INDEX ix_cache_capture_log_name ON {schema}.cache_capture (log_name);
COMMENT ON TABLE {schema}.cache_capture IS
  'what the relay of a cache forgets when rows of a captured table change';
COMMENT ON COLUMN {schema}.cache_capture.caches IS
  'caches whose entries are named by the primary key';
""")


def downgrade() -> None:
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.cache_capture) THEN
        RAISE EXCEPTION 'caches follow captured tables'
            USING HINT = 'Let them follow no more, with Cache.release().';
    END IF;
END $$;
DROP TABLE {schema}.cache_capture;
""")
