"""The shard map, and who owns which bucket.

Revision ID: dp0005
Revises: dp0004
"""

from datapatterns_migrations.placement import run

revision = "dp0005"
down_revision = "dp0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(CONTROL_TABLES)
    run(SHARD_TABLES)
    run(PLACEMENT)
    run(OWNERSHIP)


def downgrade() -> None:
    run("""
        DROP FUNCTION {schema}.claim_shard(int, text);
        DROP FUNCTION {schema}.claim_buckets(int, int[]);
        DROP FUNCTION {schema}.assert_map(int, text);
        DROP FUNCTION {schema}.assert_owned(int, int[]);
        DROP FUNCTION {schema}.map_digest(int);
        DROP FUNCTION {schema}.fence_class(int);
        DROP FUNCTION {schema}.hash_bucket(text, int);
        DROP FUNCTION {schema}.hash_bucket(uuid, int);
        DROP FUNCTION {schema}.hash_bucket(bigint, int);
        DROP TABLE {schema}.bucket;
        DROP TABLE {schema}.this_shard;
        DROP TABLE {schema}.bucket_map;
        DROP TABLE {schema}.shard_group;
        DROP TABLE {schema}.shard;
    """)


CONTROL_TABLES = """
    -- Connection strings stay in the application's configuration.
    CREATE TABLE {schema}.shard (
        shard_id text NOT NULL,
        CONSTRAINT pk_shard PRIMARY KEY (shard_id),
        -- The name becomes part of names on servers, so nothing in it ever needs quoting.
        CONSTRAINT ck_shard_shard_id CHECK (shard_id ~ '^[a-z0-9_]{1,30}$')
    );

    -- Tables that share a shard key. The fingerprint covers the four columns before it: a
    -- process that declares something else must not route.
    CREATE TABLE {schema}.shard_group (
        group_id int NOT NULL GENERATED ALWAYS AS IDENTITY,
        name text NOT NULL,
        strategy text NOT NULL,
        key_type text NOT NULL,
        buckets int NOT NULL,
        hash_function text NOT NULL,
        fingerprint text NOT NULL,
        epoch bigint NOT NULL DEFAULT 1,
        CONSTRAINT pk_shard_group PRIMARY KEY (group_id),
        CONSTRAINT uq_shard_group_name UNIQUE (name),
        CONSTRAINT ck_shard_group_strategy CHECK (strategy = 'hash'),
        CONSTRAINT ck_shard_group_key_type CHECK (key_type IN ('bigint', 'text', 'uuid')),
        CONSTRAINT ck_shard_group_buckets CHECK (buckets > 0 AND buckets & (buckets - 1) = 0)
    );

    CREATE TABLE {schema}.bucket_map (
        group_id int NOT NULL,
        bucket int NOT NULL,
        shard_id text NOT NULL,
        epoch bigint NOT NULL DEFAULT 1,
        CONSTRAINT pk_bucket_map PRIMARY KEY (group_id, bucket),
        CONSTRAINT fk_bucket_map_group_id_shard_group
            FOREIGN KEY (group_id) REFERENCES {schema}.shard_group,
        CONSTRAINT fk_bucket_map_shard_id_shard
            FOREIGN KEY (shard_id) REFERENCES {schema}.shard,
        CONSTRAINT ck_bucket_map_bucket CHECK (bucket >= 0)
    );
"""

SHARD_TABLES = """
    -- Read whenever a connection is opened: catches swapped connection strings.
    CREATE TABLE {schema}.this_shard (
        only_row boolean NOT NULL DEFAULT true,
        shard_id text NOT NULL,
        CONSTRAINT pk_this_shard PRIMARY KEY (only_row),
        CONSTRAINT ck_this_shard_only_row CHECK (only_row),
        CONSTRAINT ck_this_shard_shard_id CHECK (shard_id ~ '^[a-z0-9_]{1,30}$')
    );

    -- The truth about ownership; what routers hold is a cache.
    CREATE TABLE {schema}.bucket (
        group_id int NOT NULL,
        bucket int NOT NULL,
        state text NOT NULL,
        epoch bigint NOT NULL,
        CONSTRAINT pk_bucket PRIMARY KEY (group_id, bucket),
        CONSTRAINT ck_bucket_bucket CHECK (bucket >= 0),
        CONSTRAINT ck_bucket_state CHECK (state IN ('owned', 'incoming', 'moved', 'cleaned'))
    ) WITH (fillfactor = 50);
"""

PLACEMENT = """
    -- The remainder that PARTITION BY HASH chooses with MODULUS buckets, a power of two: the seed
    -- and the addend are PostgreSQL's own. Plain SQL, so that the planner inlines it and an
    -- expression index on it serves a bucket's predicate.
    CREATE FUNCTION {schema}.hash_bucket(key bigint, buckets int) RETURNS int
        LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
        RETURN (((hashint8extended(key, 8816678312871386365) & (buckets - 1))
            + (5305509591434766563 & (buckets - 1))) & (buckets - 1))::int;
    CREATE FUNCTION {schema}.hash_bucket(key uuid, buckets int) RETURNS int
        LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
        RETURN (((uuid_hash_extended(key, 8816678312871386365) & (buckets - 1))
            + (5305509591434766563 & (buckets - 1))) & (buckets - 1))::int;
    CREATE FUNCTION {schema}.hash_bucket(key text, buckets int) RETURNS int
        LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
        RETURN (((hashtextextended(key COLLATE "C", 8816678312871386365) & (buckets - 1))
            + (5305509591434766563 & (buckets - 1))) & (buckets - 1))::int;

    -- The first key of the advisory locks that fence a group's buckets.
    CREATE FUNCTION {schema}.fence_class(group_id int) RETURNS int
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN 742000000 + group_id;
"""

OWNERSHIP = """
    -- What this shard holds of a group, in a form that a router can compute from its map.
    -- NULL if it holds nothing.
    CREATE FUNCTION {schema}.map_digest(in_group int) RETURNS text
        LANGUAGE sql STABLE PARALLEL SAFE
        RETURN (
            SELECT encode(sha256(convert_to(
                string_agg(bucket || state, ',' ORDER BY bucket), 'UTF8')), 'hex')
            FROM {schema}.bucket
            WHERE group_id = in_group AND state <> 'cleaned'
        );

    -- For reads: WHERE assert_owned(1, '{17}') AND ... runs once, before the scan, and in the same
    -- snapshot. SD001 means: read the map again, then repeat the transaction.
    CREATE FUNCTION {schema}.assert_owned(in_group int, in_buckets int[]) RETURNS boolean
        LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
    BEGIN
        IF EXISTS (
            SELECT FROM unnest(in_buckets) AS wanted (bucket)
            WHERE NOT EXISTS (
                SELECT FROM {schema}.bucket AS held
                WHERE held.group_id = in_group AND held.bucket = wanted.bucket
                    AND held.state = 'owned')
        ) THEN
            RAISE EXCEPTION 'this shard does not own all of buckets % of group %',
                in_buckets, in_group USING ERRCODE = 'SD001';
        END IF;
        RETURN true;
    END $$;

    -- For statements sent to whole shards: this snapshot agrees with the map of the router.
    CREATE FUNCTION {schema}.assert_map(in_group int, in_digest text) RETURNS boolean
        LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
    BEGIN
        IF {schema}.map_digest(in_group) IS DISTINCT FROM in_digest THEN
            RAISE EXCEPTION 'the buckets of group % on this shard differ from the map', in_group
                USING ERRCODE = 'SD001';
        END IF;
        RETURN true;
    END $$;

    -- For transactions that write: the buckets stay here until the transaction ends, for whoever
    -- wants to take one away needs its fence alone. SECURITY DEFINER, because a row lock needs
    -- the right to update, which an application should not have.
    CREATE FUNCTION {schema}.claim_buckets(in_group int, in_buckets int[]) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        wanted int;
        owned int;
    BEGIN
        -- In order, so that two transactions cannot wait for each other in a ring.
        FOR wanted IN SELECT DISTINCT b FROM unnest(in_buckets) AS b ORDER BY b LOOP
            PERFORM pg_advisory_xact_lock_shared({schema}.fence_class(in_group), wanted);
        END LOOP;
        IF current_setting('transaction_isolation') = 'read committed'
            OR current_setting('transaction_read_only') = 'on' THEN
            SELECT count(*) INTO owned FROM {schema}.bucket
            WHERE group_id = in_group AND bucket = ANY (in_buckets) AND state = 'owned';
        ELSE
            -- The snapshot may be older than the fence, and still show the owner of that time.
            -- A row lock fails with 40001 if the row has changed since.
            SELECT count(*) INTO owned FROM (
                SELECT FROM {schema}.bucket
                WHERE group_id = in_group AND bucket = ANY (in_buckets) AND state = 'owned'
                ORDER BY bucket FOR SHARE) AS held;
        END IF;
        IF owned < (SELECT count(DISTINCT b) FROM unnest(in_buckets) AS b) THEN
            RAISE EXCEPTION 'this shard does not own all of buckets % of group %',
                in_buckets, in_group USING ERRCODE = 'SD001';
        END IF;
    END $$;

    -- For bulk work on all buckets of a shard: row locks, because a thousand fences would not fit
    -- into the lock table.
    CREATE FUNCTION {schema}.claim_shard(in_group int, in_digest text) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM FROM {schema}.bucket WHERE group_id = in_group ORDER BY bucket FOR SHARE;
        PERFORM {schema}.assert_map(in_group, in_digest);
    END $$;
"""
