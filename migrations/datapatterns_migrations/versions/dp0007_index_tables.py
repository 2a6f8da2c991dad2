"""What is known of each index table.

Revision ID: dp0007
Revises: dp0006
"""

from datapatterns_migrations.placement import run

revision = "dp0007"
down_revision = "dp0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("SELECT 1")


def downgrade() -> None:
    run("SELECT 1")
