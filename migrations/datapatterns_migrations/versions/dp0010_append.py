"""Appends with tags, conditions, codecs and idempotency keys; data as it was written.

Lists travel as lines of text, which JSON never contains raw: the driver builds an array four times
slower.

Revision ID: dp0010
Revises: dp0009
"""

from datapatterns_migrations.event_conditions import CREATE as CONDITIONS
from datapatterns_migrations.event_conditions import DROP as CONDITIONS_BEFORE
from datapatterns_migrations.event_contents import CREATE as CONTENTS
from datapatterns_migrations.event_contents import DROP as CONTENTS_BEFORE
from datapatterns_migrations.placement import run
from datapatterns_migrations.rights import execute_carried
from datapatterns_migrations.versions.dp0002_event_store import APPEND as APPEND_BEFORE
from datapatterns_migrations.versions.dp0009_least_rights import FENCE as FENCE_AS_A_FUNCTION

revision = "dp0010"
down_revision = "dp0009"
branch_labels = None
depends_on = None

APPEND_EVENTS = (
    "{schema}.append_events(text, text, text, bigint, bigint, text, text, text, text, text,"
    " integer, text, boolean, jsonb, bigint)"
)
APPEND_EVENTS_BEFORE = (
    "{schema}.append_events(text, text, text, bigint, text[], integer[], uuid[], text[], text[],"
    " bigint)"
)

FENCE = """
-- As raise_fence in dp0009, in the trigger itself: a function less to call for each append.
CREATE OR REPLACE FUNCTION {schema}.raise_fence_before_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    drawn bigint := pg_sequence_last_value('{schema}.event_position');
    class oid := '{schema}.event_position'::regclass::oid;
    transaction text := pg_current_xact_id()::text;
    note text := 'datapatterns.fence_' || class;
    noted text := current_setting(note, true);
    bound bigint;
    is_raised boolean;
BEGIN
    -- Assignments: each PERFORM would be a query of its own.
    IF drawn IS NULL THEN
        RAISE EXCEPTION 'event_position cannot be read, or was restarted'
            USING HINT = 'Grant SELECT and USAGE on it; use setval(..., n), not RESTART.';
    END IF;
    IF split_part(noted, ':', 1) = transaction THEN
        bound := nullif(split_part(noted, ':', 2), '')::bigint;
    END IF;
    IF bound IS NULL OR bound > drawn OR drawn - bound >= 1073741824 THEN
        bound := drawn;
        noted := set_config(note, transaction || ':' || bound, true);
    END IF;
    is_raised := pg_advisory_xact_lock_shared(class::int, (bound & 2147483647)::int) IS NOT NULL;
    RETURN NULL;
END $$;
DROP FUNCTION {schema}.raise_fence();
"""

FENCE_BEFORE = (
    FENCE_AS_A_FUNCTION
    + """
CREATE OR REPLACE FUNCTION {schema}.raise_fence_before_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM {schema}.raise_fence();
    RETURN NULL;
END $$;
"""
)

APPEND = """
-- p_expected: NULL any version, 0 a new stream, -1 an existing one, n exactly n.
-- p_position: that of event n, if the caller knows it. A version alone does not tell whether the
-- event it was based on was rolled back, and another one has taken its place.
-- p_types: the types that occur, each a line of name, blank, schema version.
-- p_type_of: for each event the line of its type, after commas; NULL if there is one type.
-- p_event_ids, p_data: a line for each event; data in base64 if p_codec is not 0.
-- p_meta: one line for all events, or one for each, empty for none; NULL if there is none.
-- p_tags: a line for each event, its tags after tabs; NULL if there are none.
-- p_keyed: recognise a repetition although no version is expected, by the first event's id.
-- p_condition, p_after: append only if nothing matches behind p_after; see matches_after.
-- p_after without p_condition: the tags are locked. Locked once more they would count twice, and
-- the gate for very many might be shut while a stream is held: out of order.
--
-- The order of locks is tags, stream, fence, position: rivals wait on the stream's row without
-- a fence that would hold readers back, the loser draws no position, and each stream's versions
-- rise with its positions. A refusal is a row, so that the caller's transaction stays usable.
-- The statement trigger of the table raises the fence before the first position is drawn.
CREATE FUNCTION {schema}.append_events(
    p_tenant text, p_category text, p_key text, p_expected bigint, p_position bigint,
    p_types text, p_type_of text, p_event_ids text, p_data text, p_meta text,
    p_codec integer DEFAULT 0, p_tags text DEFAULT NULL, p_keyed boolean DEFAULT false,
    p_condition jsonb DEFAULT NULL, p_after bigint DEFAULT NULL)
RETURNS TABLE (outcome text, stream_version bigint, last_position bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ids uuid[] := string_to_array(p_event_ids, E'\\n')::uuid[];
    n integer := cardinality(ids);
    noted integer;
    only_type integer;
    type_ids integer[];
    is_based boolean := true;
    sid bigint;
    reached bigint;
    stopped timestamptz;
    moment timestamptz;
    metas text[];
    event_tags text[];
    written bigint;
BEGIN
    -- Conditions that hold a subquery cost a plan each time, so they stand inside plain ones.
    IF n IS NULL OR n = 0 THEN
        RAISE EXCEPTION 'append_events has no events';
    END IF;
    IF p_tags IS NOT NULL OR p_condition IS NOT NULL THEN
        IF p_condition IS NOT NULL AND NOT {schema}.check_condition(p_condition, p_after) THEN
            RETURN QUERY SELECT 'isolation', NULL::bigint, NULL::bigint;
            RETURN;
        END IF;
        event_tags := string_to_array(p_tags, E'\\n');
        IF cardinality(event_tags) <> n THEN
            RAISE EXCEPTION 'the lists of append_events differ in length';
        END IF;
        IF p_condition IS NOT NULL OR p_after IS NULL THEN
            PERFORM {schema}.lock_tags(
                p_tenant,
                string_to_array(translate(p_tags, E'\\n', E'\\t'), E'\\t'),
                ARRAY(SELECT item -> 'tags' ->> 0 FROM jsonb_array_elements(p_condition) AS item));
        END IF;
    END IF;

    IF p_keyed THEN
        RETURN QUERY SELECT * FROM {schema}.repeated_append(p_tenant, p_category, p_key, ids);
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;

    IF p_condition IS NOT NULL AND {schema}.matches_after(p_tenant, p_condition, p_after) THEN
        -- Our own events match, too, if this is a retry of what did commit.
        SELECT s.id INTO sid FROM {schema}.stream AS s
         WHERE s.tenant = p_tenant AND s.category = p_category AND s.key = p_key;
        IF p_expected >= 0 THEN
            reached := p_expected;
        ELSE
            SELECT min(e.version) - 1 INTO reached
              FROM jsonb_array_elements(p_condition) AS item
              JOIN {schema}.event_tag AS t
                ON t.tenant = p_tenant AND t.tag = item -> 'tags' ->> 0 AND t.position > p_after
              JOIN {schema}.event_all AS e ON e.position = t.position
             WHERE e.stream_id = sid AND e.event_id = ids[1];
        END IF;
        RETURN QUERY SELECT * FROM {schema}.stored_append(sid, reached, ids);
        IF NOT FOUND THEN
            RETURN QUERY SELECT 'barred', NULL::bigint, NULL::bigint;
        END IF;
        RETURN;
    END IF;

    IF p_position IS NOT NULL THEN
        PERFORM FROM {schema}.stream AS s JOIN {schema}.event AS e ON e.stream_id = s.id
         WHERE s.tenant = p_tenant AND s.category = p_category AND s.key = p_key
           AND e.version = p_expected AND e.position = p_position;
        is_based := FOUND;
    END IF;
    IF NOT is_based THEN
        reached := NULL;
    ELSIF p_expected = 0 THEN
        INSERT INTO {schema}.stream AS s (tenant, category, key, version, created_at, last_at)
        VALUES (p_tenant, p_category, p_key, n, clock_timestamp(), clock_timestamp())
            ON CONFLICT (tenant, category, key) DO NOTHING
        RETURNING s.id, s.version, s.last_at INTO sid, reached, moment;
    ELSIF p_expected IS NULL THEN
        INSERT INTO {schema}.stream AS s (tenant, category, key, version, created_at, last_at)
        VALUES (p_tenant, p_category, p_key, n, clock_timestamp(), clock_timestamp())
            ON CONFLICT (tenant, category, key) DO UPDATE
           SET version = s.version + n, last_at = greatest(clock_timestamp(), s.last_at)
         WHERE s.archived_at IS NULL
        RETURNING s.id, s.version, s.last_at INTO sid, reached, moment;
    ELSE
        UPDATE {schema}.stream AS s
           SET version = s.version + n, last_at = greatest(clock_timestamp(), s.last_at)
         WHERE s.tenant = p_tenant AND s.category = p_category AND s.key = p_key
           AND (s.version = p_expected OR p_expected = -1) AND s.archived_at IS NULL
        RETURNING s.id, s.version, s.last_at INTO sid, reached, moment;
    END IF;

    IF reached IS NULL THEN  -- another writer was first; or this is a retry of what did commit
        SELECT s.id, s.version, s.archived_at INTO sid, reached, stopped FROM {schema}.stream AS s
         WHERE s.tenant = p_tenant AND s.category = p_category AND s.key = p_key;
        IF p_expected >= 0 THEN
            RETURN QUERY SELECT * FROM {schema}.stored_append(sid, p_expected, ids);
            IF FOUND THEN
                RETURN;
            END IF;
        END IF;
        RETURN QUERY SELECT CASE WHEN stopped IS NULL THEN 'conflict' ELSE 'archived' END,
                            coalesce(reached, 0), NULL::bigint;
        RETURN;
    END IF;

    IF p_keyed THEN
        INSERT INTO {schema}.append_request (event_id, stream_id, version, recorded_at)
        SELECT u.event_id, sid, reached - n + u.place, moment
          FROM unnest(ids) WITH ORDINALITY AS u (event_id, place) ORDER BY u.event_id
            ON CONFLICT (event_id) DO NOTHING;
        GET DIAGNOSTICS noted = ROW_COUNT;
        IF noted < n THEN  -- the twin has committed while this waited for the stream
            DELETE FROM {schema}.append_request AS r
             WHERE r.event_id = ANY (ids) AND r.stream_id = sid AND r.version > reached - n;
            IF reached = n THEN
                DELETE FROM {schema}.stream AS s WHERE s.id = sid;
            ELSE
                UPDATE {schema}.stream AS s SET version = s.version - n WHERE s.id = sid;
            END IF;
            RETURN QUERY SELECT * FROM {schema}.repeated_append(p_tenant, p_category, p_key, ids);
            RETURN;
        END IF;
    END IF;

    IF p_type_of IS NULL THEN
        SELECT t.id INTO only_type FROM {schema}.event_type AS t
         WHERE t.name = split_part(p_types, ' ', 1)
           AND t.schema_version = split_part(p_types, ' ', 2)::integer
         LIMIT 1;
        IF only_type IS NULL THEN
            type_ids := {schema}.event_type_ids(ARRAY[split_part(p_types, ' ', 1)],
                                                ARRAY[split_part(p_types, ' ', 2)::integer]);
            only_type := type_ids[1];
            type_ids := NULL;
        END IF;
    ELSE
        SELECT {schema}.event_type_ids(array_agg(split_part(line, ' ', 1) ORDER BY place),
                                       array_agg(split_part(line, ' ', 2)::integer ORDER BY place))
          INTO type_ids
          FROM unnest(string_to_array(p_types, E'\\n')) WITH ORDINALITY AS u (line, place);
        SELECT array_agg(type_ids[u.kind::integer] ORDER BY u.place) INTO type_ids
          FROM unnest(string_to_array(p_type_of, ',')) WITH ORDINALITY AS u (kind, place);
    END IF;

    IF n = 1 THEN
        INSERT INTO {schema}.event AS e
            (stream_id, version, at, event_id, type_id, data, meta, payload, codec, tags)
        VALUES (sid, reached, moment, ids[1], only_type,
                CASE WHEN p_codec = 0 THEN p_data::json END, p_meta::json,
                CASE WHEN p_codec <> 0 THEN decode(p_data, 'base64') END, p_codec,
                string_to_array(nullif(p_tags, ''), E'\\t'))
        RETURNING e.position INTO last_position;
    ELSE
        metas := string_to_array(p_meta, E'\\n');
        IF cardinality(metas) = 1 THEN
            metas := array_fill(metas[1], ARRAY[n]);
        END IF;
        IF n IS DISTINCT FROM cardinality(string_to_array(p_data, E'\\n'))
           OR n <> coalesce(cardinality(type_ids), n) OR n <> coalesce(cardinality(metas), n)
        THEN
            RAISE EXCEPTION 'the lists of append_events differ in length';
        END IF;
        -- Not by currval: a trigger that somebody has added may have drawn further positions.
        WITH appended AS (
            INSERT INTO {schema}.event AS e
                (stream_id, version, at, event_id, type_id, data, meta, payload, codec, tags)
            SELECT sid, reached - n + u.place, moment, u.event_id, coalesce(u.type_id, only_type),
                   CASE WHEN p_codec = 0 THEN u.data::json END, nullif(u.meta, '')::json,
                   CASE WHEN p_codec <> 0 THEN decode(u.data, 'base64') END, p_codec,
                   string_to_array(nullif(u.tags, ''), E'\\t')
              FROM (SELECT * FROM unnest(ids, type_ids, string_to_array(p_data, E'\\n'), metas,
                                         event_tags)
                      WITH ORDINALITY AS rows (event_id, type_id, data, meta, tags, place)
                     ORDER BY place) AS u
            RETURNING e.position)
        SELECT max(a.position), count(*) INTO last_position, written FROM appended AS a;
        IF written <> n THEN
            last_position := NULL;
        END IF;
    END IF;
    IF last_position IS NULL THEN
        RAISE EXCEPTION 'a trigger or a rule has kept events from being written';
    END IF;

    IF p_tags IS NOT NULL THEN
        INSERT INTO {schema}.event_tag (tenant, tag, position, type_id)
        SELECT DISTINCT p_tenant, u.tag, e.position, e.type_id
          FROM {schema}.event AS e, unnest(e.tags) AS u (tag)
         WHERE e.stream_id = sid AND e.version > reached - n AND e.version <= reached
           AND u.tag <> '';
    END IF;
    outcome := 'appended';
    stream_version := reached;
    RETURN NEXT;
END $$;

-- The events after p_expected, if they are those with these ids.
CREATE FUNCTION {schema}.stored_append(p_stream_id bigint, p_expected bigint, p_ids uuid[])
RETURNS TABLE (outcome text, stream_version bigint, last_position bigint) LANGUAGE sql STABLE AS $$
    SELECT 'repeated', p_expected + cardinality(p_ids), max(e.position)
      FROM {schema}.event_all AS e
     WHERE e.stream_id = p_stream_id AND e.version > p_expected
       AND e.version <= p_expected + cardinality(p_ids)
    HAVING array_agg(e.event_id ORDER BY e.version) = p_ids
$$;

-- The append to this stream that was sent with these ids before. If some of them are known, and
-- they do not stand in the stream one after the other, they are misused.
CREATE FUNCTION {schema}.repeated_append(
    p_tenant text, p_category text, p_key text, p_ids uuid[])
RETURNS TABLE (outcome text, stream_version bigint, last_position bigint) LANGUAGE sql AS $$
    SELECT coalesce(stored.outcome, 'misused'), coalesce(stored.stream_version, known.version),
           stored.last_position
      FROM (SELECT min(r.stream_id) AS stream_id, min(r.version) AS version
              FROM {schema}.append_request AS r WHERE r.event_id = ANY (p_ids)) AS known
      LEFT JOIN {schema}.stream AS s
        ON s.id = known.stream_id AND s.tenant = p_tenant AND s.category = p_category
       AND s.key = p_key
      LEFT JOIN LATERAL {schema}.stored_append(s.id, known.version - 1, p_ids) AS stored ON true
     WHERE known.version IS NOT NULL
$$;
"""

RIGHTS = execute_carried(
    APPEND_EVENTS_BEFORE, APPEND_EVENTS, "{schema}.lock_tags(text, text[], text[])"
)

READING = """
-- Who could read events, reads what has moved out of them.
DO $$
DECLARE
    held record;
BEGIN
    FOR held IN
        SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC'
                        ELSE quote_ident(pg_get_userbyid(grantee)) END AS role
          FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(c.relacl)
         WHERE c.oid = '{schema}.event'::regclass AND privilege_type = 'SELECT'
    LOOP
        EXECUTE format('GRANT SELECT ON {schema}.event_all, {schema}.event_archive,'
            ' {schema}.event_tag, {schema}.append_request TO %s', held.role);
    END LOOP;
END $$;
"""

BEFORE = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.event_archive)
       OR EXISTS (SELECT FROM {schema}.event WHERE codec <> 0 OR tags IS NOT NULL)
       OR EXISTS (SELECT FROM {schema}.stream WHERE archived_at IS NOT NULL OR first_version > 1)
    THEN
        RAISE EXCEPTION 'events use what the revision before does not know'
            USING HINT = 'There is no way back that would keep them.';
    END IF;
END $$;
DROP FUNCTION {schema}.event_type_ids(text[], integer[]);
DELETE FROM {schema}.snapshot WHERE codec <> 0;
"""

RIGHTS_BEFORE = (
    f"ALTER FUNCTION {APPEND_EVENTS_BEFORE}"
    " SECURITY DEFINER SET search_path = pg_catalog, pg_temp;"
    + execute_carried(APPEND_EVENTS, APPEND_EVENTS_BEFORE)
)

DROP = f"""
DROP FUNCTION {APPEND_EVENTS};
DROP FUNCTION {{schema}}.repeated_append(text, text, text, uuid[]);
DROP FUNCTION {{schema}}.stored_append(bigint, bigint, uuid[]);
"""


def upgrade() -> None:
    run(CONTENTS)
    run(FENCE)
    run(CONDITIONS)
    run(APPEND)
    run(RIGHTS)
    run(READING)
    run(f"DROP FUNCTION {APPEND_EVENTS_BEFORE};")


def downgrade() -> None:
    run(BEFORE)
    run(APPEND_BEFORE)
    run(FENCE_BEFORE)
    run(RIGHTS_BEFORE)
    run(DROP)
    run(CONDITIONS_BEFORE)
    run(CONTENTS_BEFORE)
