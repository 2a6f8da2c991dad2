"""Events that projections left out, and messages that they emit.

Revision ID: dp0019
Revises: dp0018
"""

from datapatterns_migrations.placement import run

revision = "dp0019"
down_revision = "dp0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
ALTER TABLE {schema}.projection_parked ADD COLUMN silent boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN {schema}.projection_parked.silent IS
  'parked while another version was live, which emits its messages: retried, it emits none';

-- An empty digest stands for all rows: nobody can say which ones the event concerns.
CREATE TABLE {schema}.projection_skipped (
  name text NOT NULL,
  version int NOT NULL,
  position bigint NOT NULL,
  key_digest bytea NOT NULL,
  event_type text NOT NULL,
  error text,
  message text,
  skipped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT pk_projection_skipped PRIMARY KEY (name, version, position, key_digest),
  CONSTRAINT fk_projection_skipped_name_version_projection
    FOREIGN KEY (name, version) REFERENCES {schema}.projection);
COMMENT ON COLUMN {schema}.projection_skipped.error IS
  'of the event that could not be applied; NULL for one that waited for it and was given up';

-- Short-lived rows, so they are found by few and small indexes.
CREATE TABLE {schema}.outbox (
  id bigint GENERATED ALWAYS AS IDENTITY,
  projection text NOT NULL,
  dedupe text NOT NULL,
  topic text NOT NULL,
  key text NOT NULL,
  bucket smallint NOT NULL,
  payload jsonb NOT NULL,
  position bigint NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  attempts int NOT NULL DEFAULT 0,
  retry_at timestamptz,
  given_up_at timestamptz,
  error text,
  CONSTRAINT pk_outbox PRIMARY KEY (id),
  CONSTRAINT uq_outbox_dedupe UNIQUE (dedupe),
  CONSTRAINT ck_outbox_tried CHECK (attempts > 0 OR (retry_at IS NULL AND given_up_at IS NULL)),
  CONSTRAINT ck_outbox_waits_or_not CHECK (retry_at IS NULL OR given_up_at IS NULL))
  WITH (autovacuum_vacuum_scale_factor = 0.01);
CREATE INDEX ix_outbox_bucket ON {schema}.outbox (bucket, id) WHERE given_up_at IS NULL;
CREATE INDEX ix_outbox_key ON {schema}.outbox (key, id) WHERE retry_at IS NOT NULL;
CREATE INDEX ix_outbox_given_up_at ON {schema}.outbox (given_up_at) WHERE given_up_at IS NOT NULL;
COMMENT ON TABLE {schema}.outbox IS
  'messages that projections have emitted and no relay has passed on yet';
COMMENT ON COLUMN {schema}.outbox.bucket IS
  'of the key: relays lock buckets, so that one of them at a time passes on what a key has';
""")


def downgrade() -> None:
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.outbox) OR EXISTS (SELECT FROM {schema}.projection_skipped) THEN
        RAISE EXCEPTION 'messages and what is known of skipped events would be lost'
            USING HINT = 'Let a relay pass the messages on; rebuild what has skipped events.';
    END IF;
END $$;
DROP TABLE {schema}.outbox;
DROP TABLE {schema}.projection_skipped;
ALTER TABLE {schema}.projection_parked DROP COLUMN silent;
""")
