"""How far migrations of all shards have come.

Revision ID: dp0032
Revises: dp0031
"""

from datapatterns_migrations.placement import run

revision = "dp0032"
down_revision = "dp0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
        -- In the control database. What has been done on a shard, its own version table says: this
        -- is what people look at, and what a repeated run goes on with.
        CREATE TABLE {schema}.shard_migration (
            run_id uuid NOT NULL,
            shard_id text NOT NULL,
            direction text NOT NULL,
            revision text NOT NULL,
            state text NOT NULL DEFAULT 'pending',
            attempts integer NOT NULL DEFAULT 0,
            heads text[] NOT NULL DEFAULT '{}',
            fingerprint text,
            error text,
            begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            started_at timestamptz,
            finished_at timestamptz,
            CONSTRAINT pk_shard_migration PRIMARY KEY (run_id, shard_id),
            CONSTRAINT ck_shard_migration_shard_id CHECK (shard_id ~ '^[a-z0-9_]{1,30}$'),
            CONSTRAINT ck_shard_migration_direction CHECK (direction IN ('upgrade', 'downgrade')),
            CONSTRAINT ck_shard_migration_state CHECK (
                state IN ('pending', 'running', 'done', 'failed', 'blocked', 'unavailable')
            )
        );
    """)


def downgrade() -> None:
    run("DROP TABLE {schema}.shard_migration;")
