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
    run("SELECT 1")


def downgrade() -> None:
    run("SELECT 1")
