"""Contract: names of stores go, once no old code is left.

Revision ID: shop0004
Revises: shop0003
"""

import sqlalchemy as sa
from alembic import op

revision = "shop0004"
down_revision = "shop0003"


def upgrade() -> None:
    """Require what all code writes, and drop what none reads."""
    op.alter_column("basket", "store_id", nullable=False)
    op.drop_column("basket", "store")


def downgrade() -> None:
    """Make names of the numbers."""
    op.add_column("basket", sa.Column("store", sa.Text))
    op.execute("UPDATE basket SET store = 'store ' || store_id")
    op.alter_column("basket", "store_id", nullable=True)
