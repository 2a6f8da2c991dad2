"""Consumers of captured row changes.

Revision ID: dp0003
Revises: dp0002
"""

from datapatterns_migrations.placement import run

revision = "dp0003"
down_revision = "dp0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
CREATE TABLE {schema}.change_consumer (
    name              text        NOT NULL CONSTRAINT pk_change_consumer PRIMARY KEY,
    kind              text        NOT NULL,
    -- Everything that this snapshot shows has been consumed, and nothing else.
    snapshot          pg_snapshot NOT NULL,
    populated         boolean     NOT NULL DEFAULT false,
    -- The cluster and database whose transaction ids the snapshot speaks of.
    system_identifier bigint      NOT NULL,
    database_oid      oid         NOT NULL,
    registered_at     timestamptz NOT NULL DEFAULT statement_timestamp(),
    advanced_at       timestamptz
);
CREATE TABLE {schema}.captured_table (
    log_name     text NOT NULL CONSTRAINT pk_captured_table PRIMARY KEY,
    table_schema text NOT NULL,
    table_name   text NOT NULL,
    CONSTRAINT uq_captured_table_table_schema_table_name UNIQUE (table_schema, table_name)
);
CREATE TABLE {schema}.change_subscription (
    consumer text NOT NULL CONSTRAINT fk_change_subscription_consumer_change_consumer
             REFERENCES {schema}.change_consumer ON DELETE CASCADE,
    log_name text NOT NULL CONSTRAINT fk_change_subscription_log_name_captured_table
             REFERENCES {schema}.captured_table,
    CONSTRAINT pk_change_subscription PRIMARY KEY (consumer, log_name)
);
CREATE INDEX ix_change_subscription_log_name ON {schema}.change_subscription (log_name);
""")


def downgrade() -> None:
    # Triggers call functions that write logs in this schema: drop them first, or writes would fail.
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.captured_table) THEN
        RAISE EXCEPTION 'tables are still captured; release them first, with ChangeLog.release()';
    END IF;
END $$;
DROP TABLE {schema}.change_subscription, {schema}.captured_table, {schema}.change_consumer;
""")
