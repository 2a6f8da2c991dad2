"""What keeps events for long: archives, compaction, seals.

Revision ID: dp0012
Revises: dp0011
"""

from datapatterns_migrations.placement import run

revision = "dp0012"
down_revision = "dp0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("SELECT 1;")


def downgrade() -> None:
    run("SELECT 1;")
