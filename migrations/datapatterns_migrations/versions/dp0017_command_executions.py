"""Which commands were executed under which idempotency keys, and what came of them.

Revision ID: dp0017
Revises: dp0016
"""

from datapatterns_migrations.placement import run

revision = "dp0017"
down_revision = "dp0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
-- A row is inserted before the handler runs, so that whoever repeats the key waits for it; its
-- result follows in the same transaction. So a row that others see has one.
CREATE TABLE {schema}.command_execution (
  tenant text NOT NULL,
  key text NOT NULL,
  command text NOT NULL,
  version int NOT NULL,
  digest bytea NOT NULL,
  execution_id uuid NOT NULL,
  executed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  position bigint,
  result json,
  CONSTRAINT pk_command_execution PRIMARY KEY (tenant, key),
  CONSTRAINT ck_command_execution_keyed
    CHECK (octet_length(key) BETWEEN 1 AND 255 AND octet_length(tenant) <= 500),
  CONSTRAINT ck_command_execution_named CHECK (length(command) BETWEEN 1 AND 200),
  CONSTRAINT ck_command_execution_versioned CHECK (version > 0),
  CONSTRAINT ck_command_execution_digested CHECK (octet_length(digest) = 32),
  CONSTRAINT ck_command_execution_whole CHECK ((position IS NULL) = (result IS NULL)),
  CONSTRAINT ck_command_execution_positive CHECK (position >= 0),
  CONSTRAINT ck_command_execution_bounded CHECK (octet_length(result::text) <= 65536))
  WITH (fillfactor = 60);  -- the result stays a HOT update
CREATE INDEX ix_command_execution_executed_at ON {schema}.command_execution (executed_at);
COMMENT ON TABLE {schema}.command_execution IS
  'what was executed under an idempotency key: its repetition gets the same result';
COMMENT ON COLUMN {schema}.command_execution.digest IS
  'SHA-256 of the command: the key with other contents is refused';
COMMENT ON COLUMN {schema}.command_execution.version IS
  'of the shape that the digest and the result have';
COMMENT ON COLUMN {schema}.command_execution.execution_id IS
  'the causation_id of its events';
""")


def downgrade() -> None:
    run("DROP TABLE {schema}.command_execution")
