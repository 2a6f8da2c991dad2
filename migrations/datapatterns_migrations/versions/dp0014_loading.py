"""Load streams by a function, whose plans outlive a ROLLBACK.

psycopg forgets what it has prepared at each ROLLBACK, and who only reads seldom commits. Planning
the statement anew cost three times as much as carrying it out.

Revision ID: dp0014
Revises: dp0013
"""

from datapatterns_migrations.placement import run

revision = "dp0014"
down_revision = "dp0013"
branch_labels = None
depends_on = None

LOAD = """
-- The latest fitting snapshot of each stream, and at most p_limit events that followed it. STABLE:
-- all of it is one view of the database, that of the calling statement.
-- p_versions (one for each key), p_at: as it was then; NULL for now. p_fingerprint: NULL for no
-- snapshots.
-- p_bound: events come with their ids. What the rows mean, states/load_statement.py tells.
CREATE FUNCTION {schema}.load_streams(
    p_tenant text, p_category text, p_keys text[], p_names text[], p_aggregate text,
    p_fingerprint bytea, p_versions bigint[], p_at timestamptz, p_limit bigint, p_bound boolean)
RETURNS TABLE (place bigint, version bigint, kind integer, "position" bigint, content text)
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    ids bigint[];
    begins bigint[];
    sid bigint;
    first bigint;
    until bigint;
    kept record;
BEGIN
    RETURN QUERY
        SELECT 0::bigint, t.schema_version::bigint, -4, t.id::bigint, t.name
          FROM {schema}.event_type AS t WHERE t.name = ANY (p_names);
    FOR i IN 1..cardinality(p_keys) LOOP
        place := i;
        SELECT s.id, s.version, s.first_version INTO sid, load_streams."position", first
          FROM {schema}.stream AS s
         WHERE s.tenant = p_tenant AND s.category = p_category AND s.key = p_keys[i];
        CONTINUE WHEN sid IS NULL;
        ids[i] := sid;
        until := p_versions[i];
        -- Compacted events count only for the past.
        IF first > 1 AND (first > until OR p_at IS NOT NULL AND NOT EXISTS (
            SELECT FROM {schema}.event_all AS e
             WHERE e.stream_id = sid AND e.version = first AND e.at <= p_at))
        THEN
            first := 1;
        END IF;
        version := first - 1;
        kind := -1;
        content := NULL;
        RETURN NEXT;
        begins[i] := version;
        CONTINUE WHEN p_fingerprint IS NULL;
        SELECT n.version, n.position, n.at,
               CASE WHEN n.codec = 0 THEN n.state::text
                    ELSE concat('#', n.codec, ' ', encode(n.payload, 'base64')) END AS state
          INTO kept
          FROM {schema}.snapshot AS n
         WHERE n.stream_id = sid AND n.aggregate = p_aggregate
           AND n.fingerprint = p_fingerprint AND n.version > begins[i]
           AND (until IS NULL OR n.version <= until) AND (p_at IS NULL OR n.at <= p_at)
         ORDER BY n.version DESC LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        begins[i] := kept.version;
        version := kept.version;
        "position" := kept.position;
        content := kept.state;
        -- A restored database may lack events that a snapshot was made from, or have others in
        -- their places, which were appended since; those have other times.
        kind := CASE WHEN EXISTS (
            SELECT FROM {schema}.event_all AS e
             WHERE e.stream_id = sid AND e.version = kept.version
               AND e.position = kept.position AND e.at = kept.at) THEN -2 ELSE -3 END;
        RETURN NEXT;
    END LOOP;
    FOR i IN 1..cardinality(p_keys) LOOP
        CONTINUE WHEN ids[i] IS NULL;
        until := p_versions[i];
        RETURN QUERY
            SELECT i::bigint, e.version, e.type_id, e.position,
                   CASE WHEN NOT p_bound AND e.codec = 0 THEN e.data::text
                        ELSE concat('#', e.codec, ' ', e.event_id, ' ',
                                    coalesce(e.data::text, encode(e.payload, 'base64'))) END
              FROM {schema}.event_all AS e
             WHERE e.stream_id = ids[i] AND e.version > begins[i]
               AND (until IS NULL OR e.version <= until) AND (p_at IS NULL OR e.at <= p_at)
             ORDER BY e.version LIMIT p_limit;
    END LOOP;
END $$;
"""


def upgrade() -> None:
    run(LOAD)


def downgrade() -> None:
    run("""
        DROP FUNCTION {schema}.load_streams(
            text, text, text[], text[], text, bytea, bigint[], timestamptz, bigint, boolean);
    """)
