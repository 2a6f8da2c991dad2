"""Place rows by ranges, lists, directories and remainders, too.

Revision ID: dp0028
Revises: dp0027
"""

from datapatterns_migrations.placement import run

revision = "dp0028"
down_revision = "dp0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    run(DOWNGRADE)


UPGRADE = """
    ALTER TABLE {schema}.shard_group
        ALTER COLUMN hash_function DROP NOT NULL,
        DROP CONSTRAINT ck_shard_group_strategy,
        DROP CONSTRAINT ck_shard_group_buckets,
        ADD CONSTRAINT ck_shard_group_strategy
            CHECK (strategy IN ('hash', 'modulo', 'range', 'list', 'directory')),
        ADD CONSTRAINT ck_shard_group_buckets
            CHECK (buckets > 0 AND (strategy <> 'hash' OR buckets & (buckets - 1) = 0)),
        ADD CONSTRAINT ck_shard_group_hash_function
            CHECK ((strategy = 'hash') = (hash_function IS NOT NULL));
"""

# Groups that are placed otherwise make it fail: what they hold could not be found any more.
DOWNGRADE = """
    ALTER TABLE {schema}.shard_group
        DROP CONSTRAINT ck_shard_group_hash_function,
        DROP CONSTRAINT ck_shard_group_strategy,
        DROP CONSTRAINT ck_shard_group_buckets,
        ALTER COLUMN hash_function SET NOT NULL,
        ADD CONSTRAINT ck_shard_group_strategy CHECK (strategy = 'hash'),
        ADD CONSTRAINT ck_shard_group_buckets
            CHECK (buckets > 0 AND buckets & (buckets - 1) = 0);
"""
