"""Statements of one bucket ask whether it is owned without a function, and claim it sooner.

Revision ID: dp0038
Revises: dp0037
"""

from datapatterns_migrations.placement import run

revision = "dp0038"
down_revision = "dp0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(REFUSAL)
    run(CLAIM)


def downgrade() -> None:
    run("DROP FUNCTION {schema}.refuse_bucket(int, int);")
    run(CLAIM_BEFORE)


REFUSAL = """
    -- What a read calls if its own look at the bucket found nothing. That look costs the planner
    -- and the server a tenth of what assert_owned costs, which runs a query of its own.
    CREATE FUNCTION {schema}.refuse_bucket(in_group int, in_bucket int) RETURNS boolean
        LANGUAGE plpgsql VOLATILE PARALLEL SAFE AS $$
    BEGIN
        RAISE EXCEPTION 'this shard does not own all of buckets % of group %',
            ARRAY[in_bucket], in_group USING ERRCODE = 'SD001';
    END $$;
"""

_HEAD = """
    CREATE OR REPLACE FUNCTION {schema}.claim_buckets(
        in_group int, in_buckets int[], in_generations int[] DEFAULT NULL) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        wanted int;
        owned int;
    BEGIN
"""

# The same for one, as nearly all are: it needs no order, and nothing is counted.
_ONE = """
        IF cardinality(in_buckets) = 1 THEN
            PERFORM pg_advisory_xact_lock_shared({schema}.fence_class(in_group), in_buckets[1]);
            IF current_setting('transaction_isolation') = 'read committed'
                OR current_setting('transaction_read_only') = 'on' THEN
                PERFORM FROM {schema}.bucket AS held
                WHERE held.group_id = in_group AND held.bucket = in_buckets[1]
                    AND held.state = 'owned'
                    AND held.generation <= coalesce(in_generations[1], 0);
            ELSE
                PERFORM FROM {schema}.bucket AS held
                WHERE held.group_id = in_group AND held.bucket = in_buckets[1]
                    AND held.state = 'owned'
                    AND held.generation <= coalesce(in_generations[1], 0) FOR SHARE;
            END IF;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'this shard does not own all of buckets % of group %',
                    in_buckets, in_group USING ERRCODE = 'SD001';
            END IF;
            RETURN;
        END IF;
"""

# As in dp0031.
_SEVERAL = """
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

CLAIM = _HEAD + _ONE + _SEVERAL
CLAIM_BEFORE = _HEAD + _SEVERAL
