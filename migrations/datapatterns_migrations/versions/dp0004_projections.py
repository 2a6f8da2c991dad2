"""Checkpoints and leases of projections.

Revision ID: dp0004
Revises: dp0003
"""

from datapatterns_migrations.placement import run

revision = "dp0004"
down_revision = "dp0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
CREATE TABLE {schema}.projection (
  name text NOT NULL,
  version int NOT NULL,
  kind text NOT NULL,
  status text NOT NULL,
  target text,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT pk_projection PRIMARY KEY (name, version),
  CONSTRAINT ck_projection_named CHECK (name ~ '^[a-z][a-z0-9_]{0,62}$'),
  CONSTRAINT ck_projection_versioned CHECK (version > 0),
  CONSTRAINT ck_projection_kind CHECK (kind IN ('table', 'redis')),
  CONSTRAINT ck_projection_target CHECK ((kind = 'table') = (target IS NOT NULL)),
  CONSTRAINT ck_projection_status
    CHECK (status IN ('building', 'live', 'standby', 'retired', 'failed')));
CREATE UNIQUE INDEX ix_projection_one_live_version ON {schema}.projection (name)
  WHERE status = 'live';
CREATE UNIQUE INDEX ix_projection_one_live_target ON {schema}.projection (target)
  WHERE status = 'live';
COMMENT ON COLUMN {schema}.projection.target IS
  'the table that holds the rows, with its schema: no two projections may write one';

-- A shard owns the keys whose hash & mask is its number; mask 0 means that it owns them all.
CREATE TABLE {schema}.projection_shard (
  name text NOT NULL,
  version int NOT NULL,
  shard int NOT NULL DEFAULT 0,
  mask int NOT NULL DEFAULT 0,
  position bigint NOT NULL DEFAULT 0,
  epoch bigint NOT NULL DEFAULT 0,
  build uuid NOT NULL DEFAULT gen_random_uuid(),
  owner text,
  lease_until timestamptz,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  error jsonb,
  CONSTRAINT pk_projection_shard PRIMARY KEY (name, version, shard),
  CONSTRAINT fk_projection_shard_name_version_projection
    FOREIGN KEY (name, version) REFERENCES {schema}.projection,
  CONSTRAINT ck_projection_shard_masked
    CHECK (mask >= 0 AND (mask & (mask + 1)) = 0 AND shard BETWEEN 0 AND mask),
  CONSTRAINT ck_projection_shard_rising CHECK (position >= 0 AND epoch >= 0),
  CONSTRAINT ck_projection_shard_leased CHECK ((owner IS NULL) = (lease_until IS NULL)))
  WITH (fillfactor = 50);  -- the checkpoint stays a HOT update
COMMENT ON COLUMN {schema}.projection_shard.epoch IS
  'fencing token: rises with every lease; effects are committed only under the latest';
COMMENT ON COLUMN {schema}.projection_shard.build IS
  'which build the data belong to; a read model outside PostgreSQL carries it';
""")


def downgrade() -> None:
    run("DROP TABLE {schema}.projection_shard; DROP TABLE {schema}.projection")
