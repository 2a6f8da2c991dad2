"""What readers of the log need: the persisted mark.

Revision ID: dp0011
Revises: dp0010
"""

from datapatterns_migrations.placement import run

revision = "dp0011"
down_revision = "dp0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("SELECT 1;")


def downgrade() -> None:
    run("SELECT 1;")
