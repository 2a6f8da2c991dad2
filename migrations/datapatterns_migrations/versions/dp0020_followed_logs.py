"""What read models on another server know of the log that they follow.

Revision ID: dp0020
Revises: dp0019
"""

from datapatterns_migrations.placement import run

revision = "dp0020"
down_revision = "dp0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
CREATE TABLE {schema}.projection_followed_log (
  name text NOT NULL,
  version int NOT NULL,
  shard int NOT NULL,
  log text NOT NULL,
  position bigint NOT NULL,
  witness text NOT NULL,
  mark bigint NOT NULL,
  seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  caught_up_at timestamptz,
  CONSTRAINT pk_projection_followed_log PRIMARY KEY (name, version, shard),
  CONSTRAINT fk_projection_followed_log_name_version_projection
    FOREIGN KEY (name, version) REFERENCES {schema}.projection,
  CONSTRAINT ck_projection_followed_log_told CHECK (log ~ '^[0-9a-f]{8}$' AND mark >= 0))
  WITH (fillfactor = 50);  -- each page is a HOT update
COMMENT ON TABLE {schema}.projection_followed_log IS
  'of segments whose events are on another server: which log, up to where it was final, and when';
COMMENT ON COLUMN {schema}.projection_followed_log.witness IS
  'the newest events at the checkpoint: they tell a log that has lost its end';
COMMENT ON COLUMN {schema}.projection_followed_log.caught_up_at IS
  'when the segment last showed all that was final';
""")


def downgrade() -> None:
    run("DROP TABLE {schema}.projection_followed_log")
