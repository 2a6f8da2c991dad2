"""What is known of each materialized view.

Revision ID: dp0006
Revises: dp0005
"""

from datapatterns_migrations.placement import run

revision = "dp0006"
down_revision = "dp0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
CREATE TABLE {schema}.materialized_view (
    name             text        NOT NULL CONSTRAINT pk_materialized_view PRIMARY KEY,
    -- Without its consumer a view would never learn of a change again.
    consumer         text        NOT NULL
                     CONSTRAINT fk_materialized_view_consumer_change_consumer
                     REFERENCES {schema}.change_consumer,
    definition_hash  text        NOT NULL,
    strategy         text        NOT NULL
                     CONSTRAINT ck_materialized_view_strategy
                     CHECK (strategy IN ('counting', 'rebuild')),
    reason           text        NOT NULL,
    -- The log of each table that the view reads.
    sources          jsonb       NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT statement_timestamp(),
    duration_seconds double precision,
    CONSTRAINT uq_materialized_view_consumer UNIQUE (consumer)
);
""")


def downgrade() -> None:
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.materialized_view) THEN
        RAISE EXCEPTION 'materialized views are left; drop them first, with drop()';
    END IF;
END $$;
DROP TABLE {schema}.materialized_view;
""")
