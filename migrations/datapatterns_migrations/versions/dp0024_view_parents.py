"""Which views are built upon which, and up to where these had shown their tables.

Revision ID: dp0024
Revises: dp0023
"""

from datapatterns_migrations.placement import run

revision = "dp0024"
down_revision = "dp0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
CREATE TABLE {schema}.view_parent (
    view     text NOT NULL CONSTRAINT fk_view_parent_view_materialized_view
             REFERENCES {schema}.materialized_view ON DELETE CASCADE,
    parent   text NOT NULL CONSTRAINT fk_view_parent_parent_materialized_view
             REFERENCES {schema}.materialized_view,
    -- What the parent contained, at least, when the view was refreshed last.
    snapshot pg_snapshot,
    as_of    timestamptz,
    CONSTRAINT pk_view_parent PRIMARY KEY (view, parent),
    CONSTRAINT ck_view_parent_no_circle CHECK (view <> parent),
    CONSTRAINT ck_view_parent_whole CHECK ((snapshot IS NULL) = (as_of IS NULL))
);
CREATE INDEX ix_view_parent_parent ON {schema}.view_parent (parent);
COMMENT ON TABLE {schema}.view_parent IS
  'which views read what another view stores, and up to where that one showed the tables';
""")


def downgrade() -> None:
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.view_parent) THEN
        RAISE EXCEPTION 'views are built upon views'
            USING HINT = 'Drop those that read others first.';
    END IF;
END $$;
DROP TABLE {schema}.view_parent;
""")
