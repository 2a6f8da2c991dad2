"""Which tables a version that is not live is in, and what their indexes are to be called.

Revision ID: dp0021
Revises: dp0020
"""

from datapatterns_migrations.placement import run

revision = "dp0021"
down_revision = "dp0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
ALTER TABLE {schema}.projection
  ADD COLUMN shadows jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN {schema}.projection.shadows IS
  'by live table: which table has the rows of this version while it is not live, names of indexes';
""")


def downgrade() -> None:
    run("""
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.projection WHERE shadows <> '{}') THEN
        RAISE EXCEPTION 'tables of versions that are not live would be forgotten'
            USING HINT = 'Retire those versions first.';
    END IF;
END $$;
ALTER TABLE {schema}.projection DROP COLUMN shadows;
""")
