"""How busy buckets and keys of shards are.

Revision ID: dp0033
Revises: dp0032
"""

from datapatterns_migrations.placement import run

revision = "dp0033"
down_revision = "dp0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
        -- The minute comes first: what is old is found, and deleted, at one end of the index.
        CREATE TABLE {schema}.bucket_load (
            minute timestamptz NOT NULL,
            group_id int NOT NULL,
            bucket int NOT NULL,
            reads bigint NOT NULL,
            writes bigint NOT NULL,
            busy_us bigint NOT NULL,
            CONSTRAINT pk_bucket_load PRIMARY KEY (minute, group_id, bucket),
            CONSTRAINT ck_bucket_load_bucket CHECK (bucket >= 0),
            CONSTRAINT ck_bucket_load_counts CHECK (reads >= 0 AND writes >= 0 AND busy_us >= 0)
        );
        -- Sums over the sketches that hold a key: it had at most `hits` there, and at least
        -- `hits - max_error`. `floor` is what those sketches say of keys that they do not hold.
        CREATE TABLE {schema}.hot_key (
            minute timestamptz NOT NULL,
            group_id int NOT NULL,
            key text NOT NULL,
            hits bigint NOT NULL,
            max_error bigint NOT NULL,
            floor bigint NOT NULL,
            busy_us bigint NOT NULL,
            CONSTRAINT pk_hot_key PRIMARY KEY (minute, group_id, key),
            CONSTRAINT ck_hot_key_counts
                CHECK (hits >= max_error AND max_error >= 0 AND floor >= 0 AND busy_us >= 0)
        );
        -- Sums over all sketches: the hits of all keys, and what a key that none holds had at most.
        CREATE TABLE {schema}.hot_key_total (
            minute timestamptz NOT NULL,
            group_id int NOT NULL,
            hits bigint NOT NULL,
            floor bigint NOT NULL,
            CONSTRAINT pk_hot_key_total PRIMARY KEY (minute, group_id),
            CONSTRAINT ck_hot_key_total_counts CHECK (hits >= floor AND floor >= 0)
        );
    """)


def downgrade() -> None:
    run("DROP TABLE {schema}.hot_key_total, {schema}.hot_key, {schema}.bucket_load;")
