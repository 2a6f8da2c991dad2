"""Keys of persons, whose loss makes their data unreadable.

Revision ID: dp0013
Revises: dp0012
"""

from datapatterns_migrations.placement import run

revision = "dp0013"
down_revision = "dp0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("SELECT 1;")


def downgrade() -> None:
    run("SELECT 1;")
