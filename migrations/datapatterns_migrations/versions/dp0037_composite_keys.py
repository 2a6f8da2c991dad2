"""Place rows by keys of two columns, too.

Revision ID: dp0037
Revises: dp0036
"""

from datapatterns_migrations.placement import run

revision = "dp0037"
down_revision = "dp0036"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    run(DOWNGRADE)


UPGRADE = """
    ALTER TABLE {schema}.shard_group
        DROP CONSTRAINT ck_shard_group_strategy,
        DROP CONSTRAINT ck_shard_group_key_type,
        ADD CONSTRAINT ck_shard_group_strategy CHECK (
            strategy IN ('hash', 'modulo', 'range', 'list', 'directory', 'composite')),
        ADD CONSTRAINT ck_shard_group_key_type CHECK (
            key_type ~ '^(bigint|text|uuid)(,(bigint|text|uuid))?$'
            AND (strategy = 'composite') = (key_type LIKE '%,%'));
"""

# Groups with such keys make it fail: what they hold could not be found any more.
DOWNGRADE = """
    ALTER TABLE {schema}.shard_group
        DROP CONSTRAINT ck_shard_group_strategy,
        DROP CONSTRAINT ck_shard_group_key_type,
        ADD CONSTRAINT ck_shard_group_strategy
            CHECK (strategy IN ('hash', 'modulo', 'range', 'list', 'directory')),
        ADD CONSTRAINT ck_shard_group_key_type CHECK (key_type IN ('bigint', 'text', 'uuid'));
"""
