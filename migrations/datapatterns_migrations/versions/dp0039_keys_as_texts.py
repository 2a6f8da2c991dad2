"""Keys of rows in a moving bucket as texts, and a mover that names its transaction.

Revision ID: dp0039
Revises: dp0038
"""

from datapatterns_migrations.placement import run

revision = "dp0039"
down_revision = "dp0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(_capture(SETTINGS, MOVER, NOTING, TABLE))


def downgrade() -> None:
    run(_capture("", MOVER_BEFORE, NOTING_BEFORE, TABLE_BEFORE))


def _capture(settings: str, mover: str, noting: str, table: str) -> str:
    parts = {"settings": settings, "mover": mover, "noting": noting, "table": table}
    statement = CAPTURE
    for name, part in parts.items():
        statement = statement.replace("{" + name + "}", part)
    return statement


CAPTURE = """
    -- Row trigger of a bucket that is moving, coming, or has moved away: notes the key of a row
    -- that changes, and refuses whoever writes to a bucket that is not here (any more, or yet), by
    -- whatever way they came. Arguments: group, bucket, what the condition was made of, columns of
    -- the key. The settings are those that keys are read back with.
    CREATE OR REPLACE FUNCTION {schema}.capture_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        SET extra_float_digits = 1 SET bytea_output = 'hex' SET IntervalStyle = 'postgres'
        SET DateStyle = 'ISO, MDY'{settings} AS $$
    DECLARE
        in_group int := TG_ARGV[0];
        in_bucket int := TG_ARGV[1];
        held text;
        noted text;
        old_row jsonb;
        new_row jsonb;
    BEGIN
        IF {mover} THEN  -- who moves it
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
        -- The columns of the key alone. A whole row may be larger than jsonb can be, or hold json
        -- that is no jsonb, such as "\\u0000".
        SELECT format('SELECT jsonb_build_object(%s)', string_agg({noting}, ', ')) INTO noted
        FROM unnest(TG_ARGV[3:]) AS name;
        IF TG_OP <> 'INSERT' THEN
            EXECUTE noted INTO old_row USING OLD;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            EXECUTE noted INTO new_row USING NEW;
        END IF;
        INSERT INTO {schema}.dirty_key (group_id, bucket, table_oid, pk)
        SELECT DISTINCT in_group, in_bucket, {table}, image
        FROM (VALUES (old_row), (new_row)) AS images (image) WHERE image IS NOT NULL;
        RETURN coalesce(NEW, OLD);
    END $$;
"""

SETTINGS = " SET lc_monetary = 'C'"

# Not a setting that somebody may have left in a session, or given to a role.
MOVER = "current_setting('datapatterns.mover', true) = pg_current_xact_id()::text"
MOVER_BEFORE = "current_setting('datapatterns.mover', true) = 'on'"

# As texts, since JSON has another word for some values: it knows no array that begins with another
# number than 1, and takes the null of jsonb for a missing value.
NOTING = "format('%L, ($1).%I::text', name, name)"
NOTING_BEFORE = "format('%L, ($1).%I', name, name)"

# A table that moves may be a partition; whoever moves it knows nothing of the whole.
TABLE = "TG_RELID"
TABLE_BEFORE = "coalesce(pg_partition_root(TG_RELID), TG_RELID)"
