"""The shard map, and who owns which bucket.

Revision ID: dp0005
Revises: dp0004
"""

from datapatterns_migrations.placement import run

revision = "dp0005"
down_revision = "dp0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("SELECT 1")


def downgrade() -> None:
    run("SELECT 1")
