"""The shop's products.

Revision ID: shop0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "shop0001"
down_revision = None
branch_labels = ("shop",)
# Name the newest revision whose tables this one needs: `datapatterns migrate status` shows it.
depends_on = "dp0008"


def upgrade() -> None:
    """Create the products."""
    op.create_table(
        "products",
        sa.Column("product_id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text),
    )


def downgrade() -> None:
    """Drop the products."""
    op.drop_table("products")
