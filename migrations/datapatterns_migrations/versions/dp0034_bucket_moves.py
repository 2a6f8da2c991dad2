"""Buckets that move between shards while they are written to.

Revision ID: dp0034
Revises: dp0033
"""

from datapatterns_migrations.placement import library_schema, run
from datapatterns_migrations.rights import execute_carried

revision = "dp0034"
down_revision = "dp0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(CONTROL_TABLES)
    run(SHARD_TABLES)
    run(CAPTURE)
    run(AGREEMENT)
    schema = library_schema()
    run(execute_carried(CLAIM_BEFORE.format(schema=schema), CLAIM.format(schema=schema)))
    run("DROP FUNCTION {schema}.claim_shard(int, text);")


def downgrade() -> None:
    schema = library_schema()
    run(AGREEMENT_BEFORE)
    run(execute_carried(CLAIM.format(schema=schema), CLAIM_BEFORE.format(schema=schema)))
    run("DROP FUNCTION {schema}.claim_shard(int, text, int[]);")
    # Triggers of moves are in the way, and should be: end the moves, and forget them, before.
    run("""
        DROP FUNCTION {schema}.reject_truncate();
        DROP FUNCTION {schema}.capture_change();
        DROP TABLE {schema}.dirty_key;
        ALTER TABLE {schema}.bucket DROP COLUMN lease_epoch;
        DROP TABLE {schema}.bucket_move;
        DROP SEQUENCE {schema}.lease_epoch;
        ALTER TABLE {schema}.shard DROP COLUMN weight, DROP COLUMN state;
    """)


CLAIM = "{schema}.claim_shard(int, text, int[])"
CLAIM_BEFORE = "{schema}.claim_shard(int, text)"

CONTROL_TABLES = """
    ALTER TABLE {schema}.shard
        ADD COLUMN state text NOT NULL DEFAULT 'active',
        ADD COLUMN weight double precision NOT NULL DEFAULT 1,
        ADD CONSTRAINT ck_shard_state CHECK (state IN ('active', 'draining', 'readonly')),
        ADD CONSTRAINT ck_shard_weight CHECK (weight > 0);

    -- One for all moves, and it only grows: whoever worked at an older one stays fenced off.
    CREATE SEQUENCE {schema}.lease_epoch AS bigint;

    CREATE TABLE {schema}.bucket_move (
        move_id uuid NOT NULL DEFAULT gen_random_uuid(),
        group_id int NOT NULL,
        bucket int NOT NULL,
        source text NOT NULL,
        target text NOT NULL,
        state text NOT NULL DEFAULT 'planned',
        worker text,
        lease_until timestamptz,
        lease_epoch bigint NOT NULL DEFAULT 0,
        copied_rows bigint,
        copied_bytes bigint,
        pause_ms double precision,
        error text,
        planned_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT pk_bucket_move PRIMARY KEY (move_id),
        CONSTRAINT fk_bucket_move_source_shard FOREIGN KEY (source) REFERENCES {schema}.shard,
        CONSTRAINT fk_bucket_move_target_shard FOREIGN KEY (target) REFERENCES {schema}.shard,
        -- Who cuts a bucket in two locks its row of the map, which keeps moves from being planned.
        CONSTRAINT fk_bucket_move_group_id_bucket_bucket_map
            FOREIGN KEY (group_id, bucket) REFERENCES {schema}.bucket_map,
        CONSTRAINT ck_bucket_move_shards CHECK (source <> target),
        CONSTRAINT ck_bucket_move_state CHECK (state IN ('planned', 'capturing', 'copying',
            'catching_up', 'cut', 'handed_over', 'cleaned', 'aborted'))
    );
    CREATE UNIQUE INDEX ix_bucket_move_one_live ON {schema}.bucket_move (group_id, bucket)
        WHERE state NOT IN ('cleaned', 'aborted');
"""

SHARD_TABLES = """
    ALTER TABLE {schema}.bucket ADD COLUMN lease_epoch bigint NOT NULL DEFAULT 0;

    -- Keys of rows, not the rows, that changed while their bucket is captured.
    CREATE TABLE {schema}.dirty_key (
        seq bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
        group_id int NOT NULL,
        bucket int NOT NULL,
        table_oid oid NOT NULL,
        pk jsonb NOT NULL,
        CONSTRAINT pk_dirty_key PRIMARY KEY (seq)
    );
    CREATE INDEX ix_dirty_key_group_id_bucket_seq
        ON {schema}.dirty_key (group_id, bucket, seq);
"""

CAPTURE = """
    -- Row trigger of a bucket that is moving or has moved away: notes the key of a row that
    -- changes, and refuses whoever writes to a bucket that is not here any more, by whatever way
    -- they came. Arguments: group, bucket, what the condition was made of, columns of the key.
    -- The settings are those that keys are read back with.
    CREATE FUNCTION {schema}.capture_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        SET extra_float_digits = 1 SET bytea_output = 'hex' SET IntervalStyle = 'postgres'
        SET DateStyle = 'ISO, MDY' AS $$
    DECLARE
        in_group int := TG_ARGV[0];
        in_bucket int := TG_ARGV[1];
        held text;
        old_row jsonb;
        new_row jsonb;
    BEGIN
        IF current_setting('datapatterns.mover', true) = 'on' THEN  -- who moves it
            RETURN coalesce(NEW, OLD);
        END IF;
        -- To the end of the transaction, also while it is prepared: the cut waits for it.
        PERFORM pg_advisory_xact_lock_shared({schema}.fence_class(in_group), in_bucket);
        IF current_setting('transaction_isolation') = 'read committed' THEN
            SELECT state INTO held FROM {schema}.bucket
            WHERE group_id = in_group AND bucket = in_bucket;
        ELSE
            -- A snapshot older than the cut shows the owner of that time. A row lock fails with
            -- 40001 if the row has changed since.
            SELECT state INTO held FROM {schema}.bucket
            WHERE group_id = in_group AND bucket = in_bucket FOR SHARE;
        END IF;
        IF held IS DISTINCT FROM 'owned' THEN
            RAISE EXCEPTION 'this shard does not own bucket % of group %', in_bucket, in_group
                USING ERRCODE = 'SD001';
        END IF;
        IF TG_OP <> 'INSERT' THEN
            old_row := to_jsonb(OLD);
        END IF;
        IF TG_OP <> 'DELETE' THEN
            new_row := to_jsonb(NEW);
        END IF;
        INSERT INTO {schema}.dirty_key (group_id, bucket, table_oid, pk)
        SELECT DISTINCT in_group, in_bucket, coalesce(pg_partition_root(TG_RELID), TG_RELID),
            (SELECT jsonb_object_agg(name, image -> name) FROM unnest(TG_ARGV[3:]) AS name)
        FROM (VALUES (old_row), (new_row)) AS images (image) WHERE image IS NOT NULL;
        RETURN coalesce(NEW, OLD);
    END $$;

    -- Statement trigger: no row trigger tells of a TRUNCATE.
    CREATE FUNCTION {schema}.reject_truncate() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF EXISTS (
            SELECT FROM {schema}.bucket
            WHERE group_id = TG_ARGV[0]::int AND bucket = TG_ARGV[1]::int AND state <> 'cleaned'
        ) THEN
            RAISE EXCEPTION 'bucket % of group % is moving; nothing may be truncated meanwhile',
                TG_ARGV[1], TG_ARGV[0] USING ERRCODE = 'SD002';
        END IF;
        RETURN NULL;
    END $$;

    -- They run as their owner. Who could attach them to a table of their own could note any keys,
    -- and hold a bucket's fence.
    REVOKE ALL ON FUNCTION {schema}.capture_change(), {schema}.reject_truncate() FROM PUBLIC;
"""

AGREEMENT = """
    -- What this shard owns of a group. Buckets that are moving, and are another's, are left out if
    -- the router knows of them; one that does not would read their rows twice.
    CREATE FUNCTION {schema}.owned_digest(in_group int, in_elsewhere int[], only_settled boolean)
        RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
        RETURN (
            SELECT encode(sha256(convert_to(
                string_agg(bucket || state, ',' ORDER BY bucket), 'UTF8')), 'hex')
            FROM {schema}.bucket
            WHERE group_id = in_group AND state <> 'cleaned' AND (settled OR NOT only_settled)
                AND (state = 'owned' OR bucket <> ALL (in_elsewhere))
        );

    DROP FUNCTION {schema}.assert_map(int, text);
    -- While a change of the map is under way, the map before and the map after are both right.
    CREATE FUNCTION {schema}.assert_map(
        in_group int, in_digest text, in_elsewhere int[] DEFAULT '{}') RETURNS boolean
        LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
    BEGIN
        IF {schema}.owned_digest(in_group, in_elsewhere, false) IS DISTINCT FROM in_digest
            AND {schema}.owned_digest(in_group, in_elsewhere, true) IS DISTINCT FROM in_digest THEN
            RAISE EXCEPTION 'the buckets of group % on this shard differ from the map', in_group
                USING ERRCODE = 'SD001';
        END IF;
        RETURN true;
    END $$;

    -- Only what is owned is held: a bucket that is coming must be able to arrive.
    CREATE FUNCTION {schema}.claim_shard(
        in_group int, in_digest text, in_elsewhere int[] DEFAULT '{}') RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM FROM {schema}.bucket WHERE group_id = in_group AND state = 'owned'
            ORDER BY bucket FOR SHARE;
        PERFORM {schema}.assert_map(in_group, in_digest, in_elsewhere);
    END $$;
"""

AGREEMENT_BEFORE = """
    DROP FUNCTION {schema}.assert_map(int, text, int[]);
    CREATE FUNCTION {schema}.assert_map(in_group int, in_digest text) RETURNS boolean
        LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
    BEGIN
        IF {schema}.map_digest(in_group) IS DISTINCT FROM in_digest
            AND {schema}.settled_digest(in_group) IS DISTINCT FROM in_digest THEN
            RAISE EXCEPTION 'the buckets of group % on this shard differ from the map', in_group
                USING ERRCODE = 'SD001';
        END IF;
        RETURN true;
    END $$;
    DROP FUNCTION {schema}.owned_digest(int, int[], boolean);

    CREATE FUNCTION {schema}.claim_shard(in_group int, in_digest text) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM FROM {schema}.bucket WHERE group_id = in_group ORDER BY bucket FOR SHARE;
        PERFORM {schema}.assert_map(in_group, in_digest);
    END $$;
"""
