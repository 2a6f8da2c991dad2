"""Streams, events, snapshots, and the position fence.

Revision ID: dp0002
Revises: dp0001
"""

from datapatterns_migrations.placement import run

revision = "dp0002"
down_revision = "dp0001"
branch_labels = None
depends_on = None

TABLES = """
-- Every (name, shape) that was ever stored: a narrow column in each event, and the list that
-- upcasters have to cover. Not unique: writers of a new type would wait for the transaction of
-- the first one. Two of them may each add it; any id of a name will do.
CREATE TABLE {schema}.event_type (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_event_type PRIMARY KEY,
    name text NOT NULL,
    schema_version integer NOT NULL,
    CONSTRAINT ck_event_type_positive CHECK (schema_version > 0)
);
CREATE INDEX ix_event_type_name ON {schema}.event_type (name, schema_version);

CREATE TABLE {schema}.stream (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_stream PRIMARY KEY,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    tenant text NOT NULL,
    category text NOT NULL,
    key text NOT NULL,
    CONSTRAINT uq_stream_tenant_category_key UNIQUE (tenant, category, key),
    CONSTRAINT ck_stream_positive CHECK (version > 0)
) WITH (fillfactor = 80);  -- room for the next version on the same page: a HOT update

-- CACHE 1 is what makes the fence right: a session that took positions in advance would draw
-- them from below the fences of others. The setval leaves no first call that is special.
CREATE SEQUENCE {schema}.event_position AS bigint MINVALUE 0 START 0 CACHE 1;
SELECT setval('{schema}.event_position', 0);

-- No foreign keys: they would lock and look up a row of stream and of event_type for each
-- event. Only the functions below and the bulk import write here, and both hold the stream's row.
CREATE TABLE {schema}.event (
    position bigint DEFAULT nextval('{schema}.event_position')
        CONSTRAINT pk_event PRIMARY KEY,
    stream_id bigint NOT NULL,
    version bigint NOT NULL,
    at timestamptz NOT NULL,
    event_id uuid NOT NULL,
    type_id integer NOT NULL,
    data jsonb NOT NULL,
    meta jsonb,
    CONSTRAINT uq_event_stream_id_version UNIQUE (stream_id, version),
    CONSTRAINT ck_event_positive CHECK (version > 0)
);

CREATE TABLE {schema}.snapshot (
    stream_id bigint NOT NULL,
    aggregate text NOT NULL,
    fingerprint bytea NOT NULL,   -- of the code: two releases keep theirs side by side
    version bigint NOT NULL,
    position bigint NOT NULL,     -- of the event with that version, and
    at timestamptz NOT NULL,      -- its time: so a snapshot serves questions about the past
    state json NOT NULL,          -- as written: jsonb would change the order of keys
    CONSTRAINT pk_snapshot PRIMARY KEY (stream_id, aggregate, fingerprint, version),
    CONSTRAINT ck_snapshot_positive CHECK (version > 0)
);

CREATE TABLE {schema}.import_chunk (
    source text NOT NULL,
    chunk bigint NOT NULL,
    events bigint NOT NULL,
    digest bytea NOT NULL,
    imported_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_import_chunk PRIMARY KEY (source, chunk)
);
"""

FENCE = """
-- Publishes, before the transaction's first position, a bound below every position it can get.
-- One lock for a transaction: its first bound is the lowest, and room for locks is limited.
-- The setting is local, so a rollback to a savepoint takes it back together with the lock; its
-- name carries the sequence's oid, so that two stores never share it.
-- Never SELECT last_value: while nextval writes its log record, the unlocked row shows up to 32
-- positions that nobody has drawn yet.
CREATE FUNCTION {schema}.raise_fence() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    bound bigint;
    class oid := '{schema}.event_position'::regclass::oid;
    transaction text := pg_current_xact_id()::text;
    note text := 'datapatterns.fence_' || class;
BEGIN
    IF current_setting(note, true) IS NOT DISTINCT FROM transaction THEN
        RETURN;
    END IF;
    bound := pg_sequence_last_value('{schema}.event_position');
    IF bound IS NULL THEN
        RAISE EXCEPTION 'event_position cannot be read, or was restarted'
            USING HINT = 'Grant SELECT and USAGE on it; use setval(..., n), not RESTART.';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(class::int, (bound & 2147483647)::int);
    PERFORM set_config(note, transaction, true);
END $$;

CREATE FUNCTION {schema}.raise_fence_before_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.raise_fence();
    RETURN NULL;
END $$;

-- No INSERT or COPY can forget it: statement triggers fire before the first default is drawn.
CREATE TRIGGER raise_fence BEFORE INSERT ON {schema}.event
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.raise_fence_before_insert();
ALTER TABLE {schema}.event ENABLE ALWAYS TRIGGER raise_fence;

-- Every position up to the result is final: its row shows to any LATER statement, or never will.
-- A key lies behind `drawn` if its appender may own positions up to it, ahead of it if it was
-- taken since. It has 31 bits: a transaction must end before a billion positions are drawn.
-- Catalogs are named with their schema, as a temporary table comes before them otherwise.
CREATE FUNCTION {schema}.high_water_mark() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    drawn bigint;
    held bigint;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'a standby does not see the fences'
            USING HINT = 'Read the log on the primary.';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the high-water mark needs a READ COMMITTED transaction';
    END IF;
    -- The order matters. A fence raised after this line guards later positions only, so it may
    -- be missed below. Read first, the fences could miss one that matters.
    drawn := pg_sequence_last_value('{schema}.event_position');
    IF drawn IS NULL THEN
        RAISE EXCEPTION 'event_position cannot be read, or was restarted'
            USING HINT = 'Grant SELECT and USAGE on it; use setval(..., n), not RESTART.';
    END IF;
    SELECT max(behind) INTO held
      FROM (SELECT (drawn - objid::bigint) & 2147483647 AS behind
              FROM pg_catalog.pg_locks
             WHERE locktype = 'advisory' AND objsubid = 2
               AND classid = '{schema}.event_position'::regclass::oid
               AND database = (SELECT oid FROM pg_catalog.pg_database
                                WHERE datname = current_database())
           ) AS fences
     WHERE behind < 1073741824;
    RETURN drawn - coalesce(held, 0);
END $$;
"""

APPEND = """
-- The ids of some types, in the order asked for; unknown ones are added.
CREATE FUNCTION {schema}.event_type_ids(names text[], schema_versions integer[])
RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE
    ids integer[];
BEGIN
    FOR attempt IN 1..2 LOOP
        SELECT array_agg(known.id ORDER BY wanted.place) INTO ids
          FROM unnest(names, schema_versions) WITH ORDINALITY AS wanted (name, version, place)
          LEFT JOIN LATERAL (
               SELECT min(t.id) AS id FROM {schema}.event_type AS t
                WHERE t.name = wanted.name AND t.schema_version = wanted.version) AS known ON true;
        EXIT WHEN array_position(ids, NULL) IS NULL;
        INSERT INTO {schema}.event_type (name, schema_version)
        SELECT DISTINCT wanted.name, wanted.version
          FROM unnest(names, schema_versions) AS wanted (name, version)
         WHERE NOT EXISTS (SELECT FROM {schema}.event_type AS t
                            WHERE t.name = wanted.name AND t.schema_version = wanted.version);
    END LOOP;
    RETURN ids;
END $$;

-- p_expected: NULL any version, 0 a new stream, -1 an existing one, n exactly n.
-- p_position: that of event n, if the caller knows it. A version alone does not tell whether the
-- event it was based on was rolled back, and another one has taken its place.
-- The order of locks is stream, fence, position: rivals wait on the stream's row without
-- a fence that would hold readers back, the loser draws no position, and each stream's versions
-- rise with its positions. A conflict is a row, so that the caller's transaction stays usable.
CREATE FUNCTION {schema}.append_events(
    p_tenant text, p_category text, p_key text, p_expected bigint,
    p_names text[], p_schema_versions integer[], p_event_ids uuid[], p_data text[], p_meta text[],
    p_position bigint DEFAULT NULL)
RETURNS TABLE (outcome text, stream_version bigint, last_position bigint)
LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cardinality(p_event_ids);
    type_ids integer[];
    sid bigint;
    reached bigint;
    moment timestamptz;
    stored_ids uuid[];
BEGIN
    IF p_position IS NOT NULL AND NOT EXISTS (
        SELECT FROM {schema}.stream AS s JOIN {schema}.event AS e ON e.stream_id = s.id
         WHERE s.tenant = p_tenant AND s.category = p_category AND s.key = p_key
           AND e.version = p_expected AND e.position = p_position)
    THEN
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
        RETURNING s.id, s.version, s.last_at INTO sid, reached, moment;
    ELSE
        UPDATE {schema}.stream AS s
           SET version = s.version + n, last_at = greatest(clock_timestamp(), s.last_at)
         WHERE s.tenant = p_tenant AND s.category = p_category AND s.key = p_key
           AND (s.version = p_expected OR p_expected = -1)
        RETURNING s.id, s.version, s.last_at INTO sid, reached, moment;
    END IF;

    IF reached IS NULL THEN  -- another writer was first; or this is a retry of what did commit
        SELECT s.id, s.version INTO sid, reached FROM {schema}.stream AS s
         WHERE s.tenant = p_tenant AND s.category = p_category AND s.key = p_key;
        IF p_expected >= 0 THEN
            SELECT array_agg(e.event_id ORDER BY e.version), max(e.position)
              INTO stored_ids, last_position
              FROM {schema}.event AS e
             WHERE e.stream_id = sid AND e.version > p_expected AND e.version <= p_expected + n;
            IF stored_ids = p_event_ids THEN
                outcome := 'repeated';
                stream_version := p_expected + n;
                RETURN NEXT;
                RETURN;
            END IF;
        END IF;
        outcome := 'conflict';
        stream_version := coalesce(reached, 0);
        last_position := NULL;
        RETURN NEXT;
        RETURN;
    END IF;

    type_ids := {schema}.event_type_ids(p_names, p_schema_versions);
    PERFORM {schema}.raise_fence();
    WITH appended AS (
        INSERT INTO {schema}.event AS e
            (position, stream_id, version, at, event_id, type_id, data, meta)
        SELECT nextval('{schema}.event_position'), sid, reached - n + u.place, moment,
               u.event_id, u.type_id, u.data::jsonb, u.meta::jsonb
          FROM (SELECT * FROM unnest(type_ids, p_event_ids, p_data, p_meta)
                  WITH ORDINALITY AS rows (type_id, event_id, data, meta, place)
                 ORDER BY place) AS u
        RETURNING e.position)
    SELECT max(a.position) INTO last_position FROM appended AS a;
    outcome := 'appended';
    stream_version := reached;
    RETURN NEXT;
END $$;
"""

APPEND_ONLY = """
CREATE FUNCTION {schema}.refuse_change_of_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are append-only: % refused', TG_OP
        USING HINT = 'Append an event that corrects the earlier one.';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.event
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change_of_events();
"""


def upgrade() -> None:
    run(TABLES)
    run(FENCE)
    run(APPEND)
    run(APPEND_ONLY)


def downgrade() -> None:
    run("""
        DROP FUNCTION {schema}.append_events(
            text, text, text, bigint, text[], integer[], uuid[], text[], text[], bigint);
        DROP FUNCTION {schema}.event_type_ids(text[], integer[]);
        DROP FUNCTION {schema}.high_water_mark();
        DROP TABLE {schema}.import_chunk, {schema}.snapshot, {schema}.event, {schema}.stream,
            {schema}.event_type;
        DROP FUNCTION {schema}.refuse_change_of_events();
        DROP FUNCTION {schema}.raise_fence_before_insert();
        DROP FUNCTION {schema}.raise_fence();
        DROP SEQUENCE {schema}.event_position;
    """)
