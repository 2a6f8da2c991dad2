"""What is known of each materialized view.

Revision ID: dp0006
Revises: dp0005
"""

from datapatterns_migrations.placement import run

revision = "dp0006"
down_revision = "dp0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("SELECT 1")


def downgrade() -> None:
    run("SELECT 1")
