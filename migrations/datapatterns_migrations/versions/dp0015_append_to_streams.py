"""Append to several streams at once, and hold one that may not exist yet.

Revision ID: dp0015
Revises: dp0014
"""

from datapatterns_migrations.placement import run
from datapatterns_migrations.rights import execute_carried
from datapatterns_migrations.versions.dp0010_append import APPEND_EVENTS

revision = "dp0015"
down_revision = "dp0014"
branch_labels = None
depends_on = None

SEVERAL = (
    "{schema}.append_to_streams(text[], text[], text[], bigint[], bigint[], text[], text[], text[],"
    " text[], text[], integer[], text[], boolean[], jsonb, bigint)"
)
LOCK = "{schema}.lock_stream(text, text, text)"

APPEND_TO_STREAMS = """
-- Several streams, or none of them: each element is what append_events takes. The caller sorts
-- them. A condition is for all, and they belong to one tenant then.
-- Rows are locked and looked at before anything is written, so a refusal draws no position,
-- unless a stream was begun or extended by somebody else in that very moment.
CREATE FUNCTION {schema}.append_to_streams(
    p_tenants text[], p_categories text[], p_keys text[], p_expected bigint[],
    p_positions bigint[], p_types text[], p_type_of text[], p_event_ids text[], p_data text[],
    p_meta text[], p_codecs integer[], p_tags text[], p_keyed boolean[],
    p_condition jsonb DEFAULT NULL, p_after bigint DEFAULT NULL)
RETURNS TABLE (outcome text, stream_version bigint, last_position bigint, place integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n integer := cardinality(p_keys);
    may_lock boolean := true;
    is_barred boolean := false;
    shared record;
    known record;
BEGIN
    IF p_condition IS NOT NULL THEN
        IF p_tenants[1] <> ANY (p_tenants) THEN
            RAISE EXCEPTION 'a condition is about the events of one tenant';
        END IF;
        IF NOT {schema}.check_condition(p_condition, p_after) THEN
            RETURN QUERY SELECT 'isolation', NULL::bigint, NULL::bigint, 1;
            RETURN;
        END IF;
        PERFORM {schema}.lock_tags(
            p_tenants[1],
            string_to_array(translate(array_to_string(p_tags, E'\\n'), E'\\n', E'\\t'), E'\\t'),
            ARRAY(SELECT item -> 'tags' ->> 0 FROM jsonb_array_elements(p_condition) AS item));
        is_barred := {schema}.matches_after(p_tenants[1], p_condition, p_after);
    END IF;
    FOR shared IN
        SELECT u.tenant, array_agg(t.tag) AS tags
          FROM unnest(p_tenants, p_tags) AS u (tenant, tags),
               unnest(string_to_array(translate(u.tags, E'\\n', E'\\t'), E'\\t')) AS t (tag)
         WHERE t.tag <> '' AND p_condition IS NULL
         GROUP BY 1 ORDER BY 1
    LOOP
        PERFORM {schema}.lock_tags(shared.tenant, shared.tags, NULL);
    END LOOP;
    FOR i IN 1..n LOOP
        IF p_keyed[i] THEN
            SELECT a.outcome, a.stream_version INTO outcome, stream_version
              FROM {schema}.repeated_append(p_tenants[i], p_categories[i], p_keys[i],
                   string_to_array(p_event_ids[i], E'\\n')::uuid[]) AS a;
            CONTINUE WHEN outcome = 'repeated';
            IF FOUND THEN
                place := i;
                RETURN NEXT;
                RETURN;
            END IF;
        END IF;
        IF may_lock THEN
            SELECT s.id, s.version, s.archived_at INTO known FROM {schema}.stream AS s
             WHERE s.tenant = p_tenants[i] AND s.category = p_categories[i] AND s.key = p_keys[i]
               FOR NO KEY UPDATE;
            -- What is not there cannot be locked yet, so what comes after it must not be, either.
            may_lock := known.id IS NOT NULL;
        ELSE
            SELECT s.id, s.version, s.archived_at INTO known FROM {schema}.stream AS s
             WHERE s.tenant = p_tenants[i] AND s.category = p_categories[i] AND s.key = p_keys[i];
        END IF;
        IF is_barred OR known.archived_at IS NOT NULL OR p_expected[i] = -1 AND known.id IS NULL
           OR p_expected[i] >= 0 AND p_expected[i] <> coalesce(known.version, 0)
           OR p_positions[i] IS NOT NULL AND NOT EXISTS (
              SELECT FROM {schema}.event AS e
               WHERE e.stream_id = known.id AND e.version = p_expected[i]
                 AND e.position = p_positions[i])
        THEN
            PERFORM FROM {schema}.stored_append(
                known.id, p_expected[i], string_to_array(p_event_ids[i], E'\\n')::uuid[]);
            IF NOT FOUND THEN  -- our own events match the condition, too, if this is a retry
                RETURN QUERY SELECT CASE WHEN is_barred THEN 'barred'
                    WHEN known.archived_at IS NULL THEN 'conflict'
                    ELSE 'archived' END, coalesce(known.version, 0), NULL::bigint, i;
                RETURN;
            END IF;
        END IF;
    END LOOP;
    -- A refusal from here on takes back what was appended before it.
    BEGIN
        FOR i IN 1..n LOOP
            SELECT a.outcome, a.stream_version, a.last_position
              INTO outcome, stream_version, last_position
              FROM {schema}.append_events(
                   p_tenants[i], p_categories[i], p_keys[i], p_expected[i], p_positions[i],
                   p_types[i], p_type_of[i], p_event_ids[i], p_data[i], p_meta[i],
                   p_codecs[i], p_tags[i], p_keyed[i], NULL, 0) AS a;
            place := i;
            IF outcome NOT IN ('appended', 'repeated') THEN
                RAISE SQLSTATE 'DP001';
            END IF;
            RETURN NEXT;
        END LOOP;
    EXCEPTION WHEN SQLSTATE 'DP001' THEN
        RETURN NEXT;  -- the variables keep what they held; the last row says why
    END;
END $$;

-- Holds a stream until the transaction ends: whoever appends to it waits. Call it before anything
-- of the transaction locks tags or other streams.
CREATE FUNCTION {schema}.lock_stream(p_tenant text, p_category text, p_key text)
RETURNS TABLE (stream_version bigint, is_archived boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    sid bigint;
BEGIN
    LOOP
        RETURN QUERY SELECT s.version, s.archived_at IS NOT NULL FROM {schema}.stream AS s
          WHERE s.tenant = p_tenant AND s.category = p_category AND s.key = p_key
            FOR NO KEY UPDATE;
        IF FOUND THEN
            RETURN;
        END IF;
        -- What is not there cannot be locked. But whoever wants to insert the same name waits for
        -- a transaction that has done so, even if it has deleted the row again, to see whether
        -- that counts. Nobody ever sees the row, and what is left of it is vacuumed.
        INSERT INTO {schema}.stream AS s (tenant, category, key, version, created_at, last_at)
        VALUES (p_tenant, p_category, p_key, 1, clock_timestamp(), clock_timestamp())
            ON CONFLICT (tenant, category, key) DO NOTHING
        RETURNING s.id INTO sid;
        IF FOUND THEN
            DELETE FROM {schema}.stream AS s WHERE s.id = sid;
            RETURN QUERY SELECT 0::bigint, false;
            RETURN;
        END IF;
    END LOOP;  -- another writer has begun it just now
END $$;
"""


def upgrade() -> None:
    run(APPEND_TO_STREAMS)
    run(execute_carried(APPEND_EVENTS, SEVERAL, LOCK))


def downgrade() -> None:
    run(f"DROP FUNCTION {SEVERAL}, {LOCK};")
