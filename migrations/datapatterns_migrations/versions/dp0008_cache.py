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
    run("SELECT 1")


def downgrade() -> None:
    run("SELECT 1")
