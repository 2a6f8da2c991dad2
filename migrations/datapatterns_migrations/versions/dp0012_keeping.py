"""What keeps events for long: archives, compaction, purges, seals.

Until now no event could be deleted. Now one can, if in the same statement it moves to where it is
kept, unchanged: from ``event`` to ``event_archive``, or back, or behind a tombstone that says what
was there. Everything else is still refused, whoever asks.

Revision ID: dp0012
Revises: dp0011
"""

from datapatterns_migrations.event_partitions import CREATE as PARTITIONS
from datapatterns_migrations.event_partitions import DROP as PARTITIONS_BEFORE
from datapatterns_migrations.placement import run

revision = "dp0012"
down_revision = "dp0011"
branch_labels = None
depends_on = None

TABLES = """
-- A chain: each digest covers the one before, and every event of its segment. A segment begins
-- where the one before ended, so that nothing fits between two of them.
CREATE TABLE {schema}.event_seal (
    segment bigint NOT NULL CONSTRAINT pk_event_seal PRIMARY KEY,
    after_position bigint NOT NULL CONSTRAINT uq_event_seal_after_position UNIQUE,
    last_position bigint NOT NULL,
    events bigint NOT NULL,
    digest bytea NOT NULL,
    sealed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT ck_event_seal_range CHECK (
        segment > 0 AND events > 0 AND after_position >= 0 AND last_position > after_position),
    CONSTRAINT ck_event_seal_digest CHECK (octet_length(digest) = 32)
);

-- What was removed for good: one row for each purge, and the digest of each event.
CREATE TABLE {schema}.event_purge (
    purge_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_event_purge PRIMARY KEY,
    stream_id bigint NOT NULL,
    first_version bigint NOT NULL,
    last_version bigint NOT NULL,
    events bigint NOT NULL,
    digest bytea NOT NULL,        -- of the export that was made before
    reason text NOT NULL,
    purged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT ck_event_purge_range CHECK (
        first_version > 0 AND events = last_version - first_version + 1),
    CONSTRAINT ck_event_purge_digest CHECK (octet_length(digest) = 32)
);
CREATE INDEX ix_event_purge_stream_id ON {schema}.event_purge (stream_id);
CREATE TABLE {schema}.event_tombstone (
    position bigint NOT NULL CONSTRAINT pk_event_tombstone PRIMARY KEY,
    stream_id bigint NOT NULL,
    version bigint NOT NULL,
    purge_id bigint NOT NULL CONSTRAINT fk_event_tombstone_purge_id_event_purge
        REFERENCES {schema}.event_purge,
    digest bytea NOT NULL,
    CONSTRAINT ck_event_tombstone_digest CHECK (octet_length(digest) = 32)
);
"""

NEEDED = """
-- Streams with a past to move: few, so that the next one is found without looking at all.
CREATE INDEX ix_stream_kept ON {schema}.stream (id)
 WHERE archived_at IS NOT NULL OR first_version > 1;

-- The projections that still have to read what lies at or before a position.
CREATE FUNCTION {schema}.projections_before(p_position bigint) RETURNS text[]
LANGUAGE sql STABLE AS $$
    SELECT array_agg(DISTINCT s.name || ' version ' || s.version)
      FROM {schema}.projection_shard AS s JOIN {schema}.projection AS p USING (name, version)
     WHERE p.status <> 'retired'  -- one that failed may be resumed
       AND s.position < p_position
$$;
"""

MOVES_ONLY = """
-- The rows that a DELETE took out of event are in event_archive now, to the last byte.
-- A revision that adds a column to event adds it here and in refuse_loss_of_archive().
CREATE FUNCTION {schema}.refuse_loss_of_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM gone AS g
          LEFT JOIN {schema}.event_archive AS k ON k.position = g.position
         WHERE (k.stream_id, k.version, k.at, k.event_id, k.type_id, k.codec, k.data::text,
                k.meta::text, k.payload, k.tags)
            IS DISTINCT FROM
               (g.stream_id, g.version, g.at, g.event_id, g.type_id, g.codec, g.data::text,
                g.meta::text, g.payload, g.tags))
    THEN
        RAISE EXCEPTION 'events are append-only: DELETE refused'
            USING HINT = 'Append an event that corrects the earlier one; to archive, use Archive.';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION {schema}.refuse_loss_of_archive() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM gone AS g
          LEFT JOIN {schema}.event AS k ON k.position = g.position
         WHERE (k.stream_id, k.version, k.at, k.event_id, k.type_id, k.codec, k.data::text,
                k.meta::text, k.payload, k.tags)
            IS DISTINCT FROM
               (g.stream_id, g.version, g.at, g.event_id, g.type_id, g.codec, g.data::text,
                g.meta::text, g.payload, g.tags)
           -- or a load no longer needs it, and a tombstone says that it was there
           AND NOT EXISTS (
               SELECT FROM {schema}.event_tombstone AS t
                 JOIN {schema}.stream AS s ON s.id = t.stream_id AND s.first_version > t.version
                WHERE t.position = g.position AND t.stream_id = g.stream_id
                  AND t.version = g.version))
    THEN
        RAISE EXCEPTION 'archived events are append-only: DELETE refused'
            USING HINT = 'Restore them, or purge what lies before a summary; use Archive.';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION {schema}.refuse_second_copy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added AS a JOIN {schema}.event AS e ON e.position = a.position)
       OR EXISTS (SELECT FROM added AS a JOIN {schema}.event_tombstone AS t
                    ON t.position = a.position)
    THEN
        RAISE EXCEPTION 'an event is in one place: INSERT into event_archive refused'
            USING HINT = 'Let the same statement delete it from event; use Archive.';
    END IF;
    RETURN NULL;
END $$;

-- Of what protects a table, one thing; event has partitions that need the same.
CREATE FUNCTION {schema}.protect_events(p_table regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR TRUNCATE ON %s'
        ' FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change_of_events()', p_table);
    EXECUTE format('CREATE TRIGGER moves_only AFTER DELETE ON %s REFERENCING OLD TABLE AS gone'
        ' FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_loss_of_events()', p_table);
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger
                    WHERE tgrelid = p_table AND tgname = 'raise_fence') THEN
        EXECUTE format('CREATE TRIGGER raise_fence BEFORE INSERT ON %s'
            ' FOR EACH STATEMENT EXECUTE FUNCTION {schema}.raise_fence_before_insert()', p_table);
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER raise_fence', p_table);
    END IF;
END $$;

DROP TRIGGER append_only ON {schema}.event;
SELECT {schema}.protect_events('{schema}.event');

CREATE TRIGGER append_only BEFORE UPDATE OR TRUNCATE ON {schema}.event_archive
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change_of_events();
CREATE TRIGGER moves_only AFTER DELETE ON {schema}.event_archive REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_loss_of_archive();
CREATE TRIGGER one_place AFTER INSERT ON {schema}.event_archive REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_second_copy();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.event_seal
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change_of_events();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.event_purge
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change_of_events();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.event_tombstone
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change_of_events();
"""

RIGHTS = """
-- Who could read events, reads what became of them.
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
        EXECUTE format('GRANT SELECT ON {schema}.event_seal, {schema}.event_purge,'
            ' {schema}.event_tombstone TO %s', held.role);
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION {schema}.protect_events(regclass) FROM PUBLIC;
"""

BEFORE = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.event_tombstone) THEN
        RAISE EXCEPTION 'events were purged, and the revision before does not know tombstones'
            USING HINT = 'There is no way back that would keep them.';
    END IF;
END $$;
DROP INDEX {schema}.ix_stream_kept;
DROP FUNCTION {schema}.projections_before(bigint);
DROP TRIGGER append_only ON {schema}.event;
DROP TRIGGER moves_only ON {schema}.event;
DROP TRIGGER append_only ON {schema}.event_archive;
DROP TRIGGER moves_only ON {schema}.event_archive;
DROP TRIGGER one_place ON {schema}.event_archive;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.event
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change_of_events();
DROP FUNCTION {schema}.protect_events(regclass);
DROP FUNCTION {schema}.refuse_loss_of_events();
DROP FUNCTION {schema}.refuse_loss_of_archive();
DROP FUNCTION {schema}.refuse_second_copy();
DROP TABLE {schema}.event_seal, {schema}.event_tombstone, {schema}.event_purge;
"""


def upgrade() -> None:
    run(TABLES)
    run(NEEDED)
    run(MOVES_ONLY)
    run(RIGHTS)
    run(PARTITIONS)


def downgrade() -> None:
    run(PARTITIONS_BEFORE)
    run(BEFORE)
