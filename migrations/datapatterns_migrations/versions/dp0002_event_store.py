"""Streams, events, snapshots, and the position fence.

Revision ID: dp0002
Revises: dp0001
"""

from datapatterns_migrations.placement import run

revision = "dp0002"
down_revision = "dp0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("SELECT 1")


def downgrade() -> None:
    run("SELECT 1")
