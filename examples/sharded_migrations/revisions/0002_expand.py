"""Expand: a basket can have the number of its store, and need not have its name.

Revision ID: shop0002
Revises: shop0001
"""

import sqlalchemy as sa
from alembic import op

revision = "shop0002"
down_revision = "shop0001"


def upgrade() -> None:
    """Add what new code writes; old code does not notice."""
    op.add_column("basket", sa.Column("store_id", sa.BigInteger))
    op.alter_column("basket", "store", nullable=True)


def downgrade() -> None:
    """Take it away again."""
    op.alter_column("basket", "store", nullable=False)
    op.drop_column("basket", "store_id")
