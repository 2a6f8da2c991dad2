"""Migrate: baskets of old code get their numbers, a few at a time.

Revision ID: shop0003
Revises: shop0002
"""

import sqlalchemy as sa
from alembic import op

revision = "shop0003"
down_revision = "shop0002"

FILL = sa.text("""
    UPDATE basket SET store_id = substr(store, 7)::bigint
    WHERE (household_id, id) IN (
        SELECT household_id, id FROM basket WHERE store_id IS NULL LIMIT 1000
        FOR UPDATE SKIP LOCKED
    )
""")


def upgrade() -> None:
    """Fill in, each thousand in a transaction of its own, and index without locking anybody out."""
    with op.get_context().autocommit_block():
        while op.get_bind().execute(FILL).rowcount:
            pass
        op.create_index("basket_store_id", "basket", ["store_id"], postgresql_concurrently=True)


def downgrade() -> None:
    """Drop the index; the numbers do no harm."""
    with op.get_context().autocommit_block():
        op.drop_index("basket_store_id", "basket", postgresql_concurrently=True)
