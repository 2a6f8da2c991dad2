"""Maps that change while they are in use: ranges, pins, entries, and what became of old buckets.

Revision ID: dp0031
Revises: dp0030
"""

from datapatterns_migrations.placement import library_schema, run
from datapatterns_migrations.rights import execute_carried

revision = "dp0031"
down_revision = "dp0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema = library_schema()
    run(CONTROL_TABLES)
    run(SHARD_TABLES)
    run(DIGESTS)
    run(OWNERSHIP)
    run(execute_carried(CLAIM_BEFORE.format(schema=schema), CLAIM.format(schema=schema)))
    run("DROP FUNCTION {schema}.claim_buckets(int, int[]);")


def downgrade() -> None:
    schema = library_schema()
    run(OWNERSHIP_BEFORE)
    run(execute_carried(CLAIM.format(schema=schema), CLAIM_BEFORE.format(schema=schema)))
    run("DROP FUNCTION {schema}.claim_buckets(int, int[], int[]);")
    run(TABLES_BEFORE)


CLAIM = "{schema}.claim_buckets(int, int[], int[])"
CLAIM_BEFORE = "{schema}.claim_buckets(int, int[])"

CONTROL_TABLES = """
    ALTER TABLE {schema}.bucket_map
        -- It was split off from this one, so keys that had been there are here now.
        ADD COLUMN parent int,
        -- All its keys are there now; this bucket is no more, and its number never comes back.
        ADD COLUMN merged_into int,
        -- Single keys of it were given to these.
        ADD COLUMN assigned_to int[] NOT NULL DEFAULT '{}',
        -- Raised whenever it loses keys: who knows it by a lower one would look for these here.
        ADD COLUMN generation int NOT NULL DEFAULT 0,
        -- A change of it is not finished, so it may not move.
        ADD COLUMN changing boolean NOT NULL DEFAULT false,
        ADD CONSTRAINT fk_bucket_map_group_id_parent_bucket_map
            FOREIGN KEY (group_id, parent) REFERENCES {schema}.bucket_map,
        ADD CONSTRAINT fk_bucket_map_group_id_merged_into_bucket_map
            FOREIGN KEY (group_id, merged_into) REFERENCES {schema}.bucket_map,
        ADD CONSTRAINT ck_bucket_map_parent CHECK (parent < bucket),
        ADD CONSTRAINT ck_bucket_map_merged_into CHECK (merged_into <> bucket),
        ADD CONSTRAINT ck_bucket_map_generation CHECK (generation >= 0);

    -- A range begins here and ends where the next one does, so two never overlap. Bounds are kept
    -- as bytes that sort as the keys do; the empty one is below all keys.
    CREATE TABLE {schema}.range_map (
        group_id int NOT NULL,
        lower_bound bytea NOT NULL,
        label text NOT NULL,
        bucket int NOT NULL,
        CONSTRAINT pk_range_map PRIMARY KEY (group_id, lower_bound),
        CONSTRAINT uq_range_map_group_id_bucket UNIQUE (group_id, bucket),
        CONSTRAINT fk_range_map_group_id_bucket_bucket_map
            FOREIGN KEY (group_id, bucket) REFERENCES {schema}.bucket_map
    );
    -- Nor is there a gap: what is below all other bounds has a range as well.
    CREATE FUNCTION {schema}.keep_lowest_range() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'the lowest range of group % has to stay', OLD.group_id
            USING ERRCODE = 'integrity_constraint_violation';
    END $$;
    CREATE TRIGGER keep_lowest_range BEFORE DELETE OR UPDATE OF group_id, lower_bound
        ON {schema}.range_map FOR EACH ROW WHEN (OLD.lower_bound = '')
        EXECUTE FUNCTION {schema}.keep_lowest_range();

    -- A key that is pinned keeps its entry: that is where it goes back to.
    CREATE TABLE {schema}.key_map (
        group_id int NOT NULL,
        kind text NOT NULL,
        key bytea NOT NULL,
        label text NOT NULL,
        bucket int NOT NULL,
        CONSTRAINT pk_key_map PRIMARY KEY (group_id, kind, key),
        CONSTRAINT fk_key_map_group_id_bucket_bucket_map
            FOREIGN KEY (group_id, bucket) REFERENCES {schema}.bucket_map,
        CONSTRAINT ck_key_map_kind CHECK (kind IN ('pin', 'entry'))
    );
    CREATE UNIQUE INDEX ix_key_map_one_pin ON {schema}.key_map (group_id, bucket)
        WHERE kind = 'pin';

    -- The one change of a group that is under way, so that whoever comes next can finish it.
    CREATE TABLE {schema}.map_change (
        group_id int NOT NULL,
        kind text NOT NULL,
        key bytea NOT NULL,
        label text NOT NULL,
        losing int,
        gaining int NOT NULL,
        shard_id text NOT NULL,
        generation int NOT NULL,
        state text NOT NULL DEFAULT 'begun',
        begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT pk_map_change PRIMARY KEY (group_id),
        CONSTRAINT fk_map_change_group_id_shard_group
            FOREIGN KEY (group_id) REFERENCES {schema}.shard_group,
        CONSTRAINT ck_map_change_kind
            CHECK (kind IN ('split', 'merge', 'pin', 'unpin', 'assign')),
        CONSTRAINT ck_map_change_losing CHECK (losing <> gaining),
        CONSTRAINT ck_map_change_state CHECK (state IN ('begun', 'applied'))
    );
"""

SHARD_TABLES = """
    ALTER TABLE {schema}.bucket
        -- Whoever knows the bucket by a lower one than this is told that the map is old.
        ADD COLUMN generation int NOT NULL DEFAULT 0,
        -- One of two maps has it and the other has not, and both are in use.
        ADD COLUMN settled boolean NOT NULL DEFAULT true,
        ADD CONSTRAINT ck_bucket_generation CHECK (generation >= 0);
"""

DIGESTS = """
    CREATE FUNCTION {schema}.settled_digest(in_group int) RETURNS text
        LANGUAGE sql STABLE PARALLEL SAFE
        RETURN (
            SELECT encode(sha256(convert_to(
                string_agg(bucket || state, ',' ORDER BY bucket), 'UTF8')), 'hex')
            FROM {schema}.bucket
            WHERE group_id = in_group AND state <> 'cleaned' AND settled
        );

    -- While a change of the map is under way, the map before and the map after are both right.
    CREATE OR REPLACE FUNCTION {schema}.assert_map(in_group int, in_digest text) RETURNS boolean
        LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
    BEGIN
        IF {schema}.map_digest(in_group) IS DISTINCT FROM in_digest
            AND {schema}.settled_digest(in_group) IS DISTINCT FROM in_digest THEN
            RAISE EXCEPTION 'the buckets of group % on this shard differ from the map', in_group
                USING ERRCODE = 'SD001';
        END IF;
        RETURN true;
    END $$;
"""

OWNERSHIP = """
    DROP FUNCTION {schema}.assert_owned(int, int[]);
    -- As before, and each bucket is known by its generation: an older map would look here for keys
    -- that have another bucket by now, which may be elsewhere.
    CREATE FUNCTION {schema}.assert_owned(
        in_group int, in_buckets int[], in_generations int[] DEFAULT NULL) RETURNS boolean
        LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
    BEGIN
        IF EXISTS (
            SELECT FROM unnest(in_buckets, in_generations) AS wanted (bucket, generation)
            WHERE NOT EXISTS (
                SELECT FROM {schema}.bucket AS held
                WHERE held.group_id = in_group AND held.bucket = wanted.bucket
                    AND held.state = 'owned'
                    AND held.generation <= coalesce(wanted.generation, 0))
        ) THEN
            RAISE EXCEPTION 'this shard does not own all of buckets % of group %',
                in_buckets, in_group USING ERRCODE = 'SD001';
        END IF;
        RETURN true;
    END $$;

    CREATE FUNCTION {schema}.claim_buckets(
        in_group int, in_buckets int[], in_generations int[] DEFAULT NULL) RETURNS void
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
            SELECT count(DISTINCT held.bucket) INTO owned
            FROM {schema}.bucket AS held
            JOIN unnest(in_buckets, in_generations) AS named (bucket, generation)
                ON held.bucket = named.bucket
            WHERE held.group_id = in_group AND held.state = 'owned'
                AND held.generation <= coalesce(named.generation, 0);
        ELSE
            -- The snapshot may be older than the fence, and still show the owner of that time.
            -- A row lock fails with 40001 if the row has changed since.
            SELECT count(DISTINCT claimed.bucket) INTO owned FROM (
                SELECT held.bucket FROM {schema}.bucket AS held
                JOIN unnest(in_buckets, in_generations) AS named (bucket, generation)
                    ON held.bucket = named.bucket
                WHERE held.group_id = in_group AND held.state = 'owned'
                    AND held.generation <= coalesce(named.generation, 0)
                ORDER BY held.bucket FOR SHARE OF held) AS claimed;
        END IF;
        IF owned < (SELECT count(DISTINCT b) FROM unnest(in_buckets) AS b) THEN
            RAISE EXCEPTION 'this shard does not own all of buckets % of group %',
                in_buckets, in_group USING ERRCODE = 'SD001';
        END IF;
    END $$;
"""

# As in dp0005. What was split, pinned or assigned would be looked for in its old bucket: it fails.
OWNERSHIP_BEFORE = """
    DO $$
    BEGIN
        IF EXISTS (SELECT FROM {schema}.bucket WHERE generation > 0)
            OR EXISTS (SELECT FROM {schema}.bucket_map WHERE generation > 0
                OR merged_into IS NOT NULL) THEN
            RAISE EXCEPTION 'ranges were split or merged, or keys were pinned or assigned; the'
                ' release before this one would not find their rows';
        END IF;
    END $$;

    DROP FUNCTION {schema}.assert_owned(int, int[], int[]);
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

    CREATE OR REPLACE FUNCTION {schema}.assert_map(in_group int, in_digest text) RETURNS boolean
        LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
    BEGIN
        IF {schema}.map_digest(in_group) IS DISTINCT FROM in_digest THEN
            RAISE EXCEPTION 'the buckets of group % on this shard differ from the map', in_group
                USING ERRCODE = 'SD001';
        END IF;
        RETURN true;
    END $$;
    DROP FUNCTION {schema}.settled_digest(int);

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
"""

TABLES_BEFORE = """
    ALTER TABLE {schema}.bucket DROP COLUMN settled, DROP COLUMN generation;
    DROP TABLE {schema}.map_change;
    DROP TABLE {schema}.key_map;
    DROP TABLE {schema}.range_map;
    DROP FUNCTION {schema}.keep_lowest_range();
    ALTER TABLE {schema}.bucket_map DROP COLUMN changing, DROP COLUMN generation,
        DROP COLUMN assigned_to, DROP COLUMN merged_into, DROP COLUMN parent;
"""
