"""Baskets.

Revision ID: shop0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "shop0001"
down_revision = None


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "basket",
        sa.Column("household_id", sa.BigInteger, primary_key=True),
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("store", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("basket")
