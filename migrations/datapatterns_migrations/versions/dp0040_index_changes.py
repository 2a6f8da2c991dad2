"""What a transaction has changed of the keys of index tables over shards, until it commits.

Revision ID: dp0040
Revises: dp0039
"""

from datapatterns_migrations.placement import run

revision = "dp0040"
down_revision = "dp0039"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
    -- No row is ever committed: who writes one deletes it in the same transaction, or is refused.
    -- So there is nothing to find after a crash, and nothing to write to the log.
    CREATE UNLOGGED TABLE {schema}.index_change (
        change_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        change_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        index_name text NOT NULL,
        fingerprint text NOT NULL,
        gone jsonb NOT NULL,
        come jsonb NOT NULL,
        touched jsonb NOT NULL
    ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
    CREATE INDEX ix_index_change_change_xid ON {schema}.index_change (change_xid);

    CREATE FUNCTION {schema}.refuse_index_change() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM FROM {schema}.index_change WHERE change_id = NEW.change_id;
        IF FOUND THEN
            RAISE EXCEPTION 'rows were written past index table %', NEW.index_name
                USING ERRCODE = 'SD003', HINT = 'Write them in a session of a ShardCluster that'
                    ' was given this index table; only it claims keys on other shards.';
        END IF;
        RETURN NULL;
    END $$;
    REVOKE ALL ON FUNCTION {schema}.refuse_index_change() FROM PUBLIC;

    CREATE CONSTRAINT TRIGGER index_change_is_claimed AFTER INSERT ON {schema}.index_change
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        EXECUTE FUNCTION {schema}.refuse_index_change();

    -- Whoever changes who has a key holds its lock until the end of the transaction; whoever
    -- changes many takes the index instead, as the server has room for some thousand locks. In the
    -- order of the locks, so that two transactions cannot wait for each other in a ring on one
    -- server; over two servers they can, which is what the limit is for.
    CREATE FUNCTION {schema}.lock_index_keys(
        in_indexes text[], in_keys text[], in_milliseconds int) RETURNS boolean
        LANGUAGE plpgsql VOLATILE AS $$
    DECLARE
        limit_before text := current_setting('lock_timeout');
        many CONSTANT int := 100;
        wanted record;
    BEGIN
        PERFORM set_config('lock_timeout', in_milliseconds::text, true);
        FOR wanted IN
            SELECT hashtextextended(index_name COLLATE "C", 0) AS lock, count(*) AS keys
            FROM unnest(in_indexes) AS index_name GROUP BY 1 ORDER BY lock
        LOOP
            IF wanted.keys > many THEN
                PERFORM pg_advisory_xact_lock(wanted.lock);
            ELSE
                PERFORM pg_advisory_xact_lock_shared(wanted.lock);
            END IF;
        END LOOP;
        FOR wanted IN
            SELECT DISTINCT hashtextextended(named.key COLLATE "C", 0) AS lock
            FROM (
                SELECT key, count(*) OVER (PARTITION BY index_name) AS keys
                FROM unnest(in_indexes, in_keys) AS given (index_name, key)
            ) AS named WHERE named.keys <= many ORDER BY lock
        LOOP
            PERFORM pg_advisory_xact_lock(wanted.lock);
        END LOOP;
        PERFORM set_config('lock_timeout', limit_before, true);
        -- Keys that rows gave up are forgotten elsewhere: a crash must not bring them back here.
        IF current_setting('synchronous_commit') = 'off' THEN
            PERFORM set_config('synchronous_commit', 'on', true);
        END IF;
        RETURN true;
    END $$;

    -- A claim is seen to be there when the rows are committed: a crash must not take it back.
    CREATE FUNCTION {schema}.claim_entry_buckets(
        in_group int, in_buckets int[], in_generations int[]) RETURNS boolean
        LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        PERFORM {schema}.claim_buckets(in_group, in_buckets, in_generations);
        IF current_setting('synchronous_commit') = 'off' THEN
            PERFORM set_config('synchronous_commit', 'on', true);
        END IF;
        RETURN true;
    END $$;
    """)


def downgrade() -> None:
    run("""
    DROP FUNCTION {schema}.claim_entry_buckets(int, int[], int[]);
    DROP FUNCTION {schema}.lock_index_keys(text[], text[], int);
    DROP TABLE {schema}.index_change;
    DROP FUNCTION {schema}.refuse_index_change();
    """)
