"""The library's schema.

Revision ID: dp0001
Revises:
"""

from datapatterns_migrations.placement import run

revision = "dp0001"
down_revision = None
branch_labels = ("datapatterns",)
depends_on = None


def upgrade() -> None:
    run("CREATE SCHEMA IF NOT EXISTS {schema}")


def downgrade() -> None:
    # The schema stays: it may hold Alembic's own version table, and what users put there.
    run("SELECT 1")
