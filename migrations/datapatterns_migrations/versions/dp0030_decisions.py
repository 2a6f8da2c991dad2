"""What became of transactions that wrote to several shards.

Revision ID: dp0030
Revises: dp0029
"""

from datapatterns_migrations.placement import run

revision = "dp0030"
down_revision = "dp0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
        -- On the primary shard of a transaction, committed with its own work. A row that says
        -- 'abort' is recovery's: it keeps a slow primary from committing after all.
        CREATE TABLE {schema}.transaction_decision (
            transaction_id uuid NOT NULL,
            outcome text NOT NULL,
            primary_xid xid8 NOT NULL,
            branches text[] NOT NULL,
            decided_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            CONSTRAINT pk_transaction_decision PRIMARY KEY (transaction_id),
            CONSTRAINT ck_transaction_decision_outcome CHECK (outcome IN ('commit', 'abort'))
        );
    """)


def downgrade() -> None:
    # Branches that are prepared still are named datapatterns/...: recover them before.
    run("DROP TABLE {schema}.transaction_decision;")
