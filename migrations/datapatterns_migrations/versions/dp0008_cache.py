"""Invalidations that commit with the write they follow.

Revision ID: dp0008
Revises: dp0007
"""

from datapatterns_migrations.placement import run

revision = "dp0008"
down_revision = "dp0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
-- Which entries a transaction made obsolete. xid: the relay takes the difference between two
-- snapshots, so a row that was written early and committed late is not passed over.
CREATE TABLE {schema}.cache_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    cache_keys text[] NOT NULL,
    CONSTRAINT pk_cache_outbox PRIMARY KEY (id),
    CONSTRAINT ck_cache_outbox_cache_keys_given CHECK (cardinality(cache_keys) > 0)
);
CREATE INDEX ix_cache_outbox_xid ON {schema}.cache_outbox (xid);

-- One row for each Redis. snapshot: all invalidations visible in it have been sent. identity: the
-- server they were sent to. generation: what all its keys begin with; a new one forgets them all.
CREATE TABLE {schema}.cache_target (
    name text NOT NULL,
    generation uuid NOT NULL DEFAULT gen_random_uuid(),
    identity text NOT NULL,
    snapshot pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    relayed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pk_cache_target PRIMARY KEY (name)
);
""")


def downgrade() -> None:
    run("DROP TABLE {schema}.cache_target; DROP TABLE {schema}.cache_outbox;")
