"""Projections of several tables, in segments, with versions beside the live one and parked events.

Revision ID: dp0016
Revises: dp0015
"""

from datapatterns_migrations.placement import run

revision = "dp0016"
down_revision = "dp0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
ALTER TABLE {schema}.projection
  ADD COLUMN mode text NOT NULL DEFAULT 'async',
  ADD COLUMN targets text[] NOT NULL DEFAULT '{}';
UPDATE {schema}.projection SET targets = ARRAY[target] WHERE target IS NOT NULL;

CREATE TABLE {schema}.projection_table (
  target text NOT NULL,
  name text NOT NULL,
  CONSTRAINT pk_projection_table PRIMARY KEY (target));
COMMENT ON TABLE {schema}.projection_table IS
  'tables that hold rows of live versions, with their schema: no two projections may write one';
INSERT INTO {schema}.projection_table (target, name)
  SELECT target, name FROM {schema}.projection WHERE status = 'live' AND target IS NOT NULL;

DROP INDEX {schema}.ix_projection_one_live_target;
ALTER TABLE {schema}.projection
  DROP CONSTRAINT ck_projection_target,
  DROP CONSTRAINT ck_projection_status,
  DROP COLUMN target,
  ADD CONSTRAINT ck_projection_targets CHECK ((kind = 'table') = (targets <> '{}')),
  ADD CONSTRAINT ck_projection_mode CHECK (mode IN ('async', 'inline')),
  ADD CONSTRAINT ck_projection_status
    CHECK (status IN ('building', 'ready', 'live', 'standby', 'retired', 'failed'));

-- A barrier holds all runners of a shard at one position while another version takes its place. It
-- expires, or a promoter that died would hold them for ever.
ALTER TABLE {schema}.projection_shard
  ADD COLUMN barrier bigint,
  ADD COLUMN barrier_until timestamptz,
  ADD COLUMN parked bigint NOT NULL DEFAULT 0,
  ADD CONSTRAINT ck_projection_shard_barred CHECK ((barrier IS NULL) = (barrier_until IS NULL)),
  ADD CONSTRAINT ck_projection_shard_parked CHECK (parked >= 0);
COMMENT ON COLUMN {schema}.projection_shard.parked IS
  'how many of its events are parked; 0 spares each page the look';

CREATE TABLE {schema}.projection_worker (
  name text NOT NULL,
  version int NOT NULL,
  worker text NOT NULL,
  seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT pk_projection_worker PRIMARY KEY (name, version, worker),
  CONSTRAINT fk_projection_worker_name_version_projection
    FOREIGN KEY (name, version) REFERENCES {schema}.projection);

CREATE TABLE {schema}.projection_parked (
  name text NOT NULL,
  version int NOT NULL,
  key_digest bytea NOT NULL,
  position bigint NOT NULL,
  event_type text NOT NULL,
  error text,
  message text,
  parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT pk_projection_parked PRIMARY KEY (name, version, key_digest, position),
  CONSTRAINT fk_projection_parked_name_version_projection
    FOREIGN KEY (name, version) REFERENCES {schema}.projection);
COMMENT ON COLUMN {schema}.projection_parked.error IS
  'of the event that could not be applied; NULL for later ones of its key, which wait for it';
""")


def downgrade() -> None:
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.projection WHERE cardinality(targets) > 1)
       OR EXISTS (SELECT FROM {schema}.projection_shard WHERE mask <> 0)
       OR EXISTS (SELECT FROM {schema}.projection_parked) THEN
        RAISE EXCEPTION 'projections of several tables, split ones and parked events would be lost'
            USING HINT = 'Merge segments, retry what is parked, and retire what has two tables.';
    END IF;
END $$;
DROP TABLE {schema}.projection_parked;
DROP TABLE {schema}.projection_worker;
DROP TABLE {schema}.projection_table;
ALTER TABLE {schema}.projection_shard
  DROP COLUMN barrier, DROP COLUMN barrier_until, DROP COLUMN parked;
UPDATE {schema}.projection SET status = 'retired' WHERE status = 'ready';
ALTER TABLE {schema}.projection
  DROP CONSTRAINT ck_projection_targets,
  DROP CONSTRAINT ck_projection_status,
  ADD COLUMN target text;
UPDATE {schema}.projection SET target = targets[1];
ALTER TABLE {schema}.projection
  DROP COLUMN targets, DROP COLUMN mode,
  ADD CONSTRAINT ck_projection_target CHECK ((kind = 'table') = (target IS NOT NULL)),
  ADD CONSTRAINT ck_projection_status
    CHECK (status IN ('building', 'live', 'standby', 'retired', 'failed'));
CREATE UNIQUE INDEX ix_projection_one_live_target ON {schema}.projection (target)
  WHERE status = 'live';
COMMENT ON COLUMN {schema}.projection.target IS
  'the table that holds the rows, with its schema: no two projections may write one';
""")
