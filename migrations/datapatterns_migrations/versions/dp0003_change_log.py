"""Consumers of captured row changes.

Revision ID: dp0003
Revises: dp0002
"""

from datapatterns_migrations.placement import run

revision = "dp0003"
down_revision = "dp0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("SELECT 1")


def downgrade() -> None:
    run("SELECT 1")
