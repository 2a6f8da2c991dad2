"""Rows of a moving bucket whose key is noted without a look at their other columns.

Revision ID: dp0036
Revises: dp0035
"""

from datapatterns_migrations.placement import run

revision = "dp0036"
down_revision = "dp0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(_capture(OF_KEY))
    run(TRUNCATE)


def downgrade() -> None:
    run(_capture(OF_ROW))
    run(TRUNCATE_BEFORE)


def _capture(noting: str) -> str:
    return CAPTURE.replace("{noting}", noting)


CAPTURE = """
    -- Row trigger of a bucket that is moving, coming, or has moved away: notes the key of a row
    -- that changes, and refuses whoever writes to a bucket that is not here (any more, or yet), by
    -- whatever way they came. Arguments: group, bucket, what the condition was made of, columns of
    -- the key. The settings are those that keys are read back with.
    CREATE OR REPLACE FUNCTION {schema}.capture_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        SET extra_float_digits = 1 SET bytea_output = 'hex' SET IntervalStyle = 'postgres'
        SET DateStyle = 'ISO, MDY' AS $$
    DECLARE
        in_group int := TG_ARGV[0];
        in_bucket int := TG_ARGV[1];
        held text;
        noted text;
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
        {noting}
        RETURN coalesce(NEW, OLD);
    END $$;
"""

OF_KEY = """
        -- The columns of the key alone. A whole row may be larger than jsonb can be, or hold json
        -- that is no jsonb, such as "\\u0000".
        SELECT format('SELECT jsonb_build_object(%s)',
            string_agg(format('%L, ($1).%I', name, name), ', ')) INTO noted
        FROM unnest(TG_ARGV[3:]) AS name;
        IF TG_OP <> 'INSERT' THEN
            EXECUTE noted INTO old_row USING OLD;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            EXECUTE noted INTO new_row USING NEW;
        END IF;
        INSERT INTO {schema}.dirty_key (group_id, bucket, table_oid, pk)
        SELECT DISTINCT in_group, in_bucket, coalesce(pg_partition_root(TG_RELID), TG_RELID), image
        FROM (VALUES (old_row), (new_row)) AS images (image) WHERE image IS NOT NULL;
"""

# As in dp0034.
OF_ROW = """
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
"""

TRUNCATE = """
    -- Statement trigger: no row trigger tells of a TRUNCATE.
    CREATE OR REPLACE FUNCTION {schema}.reject_truncate() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        held text;
    BEGIN
        IF current_setting('transaction_isolation') = 'read committed' THEN
            SELECT state INTO held FROM {schema}.bucket
            WHERE group_id = TG_ARGV[0]::int AND bucket = TG_ARGV[1]::int;
        ELSE
            -- A snapshot may show the bucket as not here, or as gone, although it is coming, and
            -- TRUNCATE removes what no snapshot shows. A row lock fails if the row has changed.
            SELECT state INTO held FROM {schema}.bucket
            WHERE group_id = TG_ARGV[0]::int AND bucket = TG_ARGV[1]::int FOR SHARE;
        END IF;
        IF held IS DISTINCT FROM 'cleaned' THEN
            RAISE EXCEPTION 'bucket % of group % is moving; nothing may be truncated meanwhile',
                TG_ARGV[1], TG_ARGV[0] USING ERRCODE = 'SD002';
        END IF;
        RETURN NULL;
    END $$;
"""

TRUNCATE_BEFORE = """
    CREATE OR REPLACE FUNCTION {schema}.reject_truncate() RETURNS trigger
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
"""
