"""What each index table consists of, so that a migration can undo that it was dropped.

Revision ID: dp0035
Revises: dp0034
"""

from datapatterns_migrations.placement import run

revision = "dp0035"
down_revision = "dp0034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
    -- Null of those that were created before, until they are created anew.
    ALTER TABLE {schema}.index_table ADD COLUMN blueprint jsonb;
    """)


def downgrade() -> None:
    run("ALTER TABLE {schema}.index_table DROP COLUMN blueprint;")
