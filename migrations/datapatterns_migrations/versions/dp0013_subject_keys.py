"""Keys of persons, whose loss makes their data unreadable.

A key is used by way of functions that run as their owner: applications may create keys and use
them, but neither list them nor take them back from anybody. Who may forget a person is granted
with EXECUTE on ``shred_subject``.

Revision ID: dp0013
Revises: dp0012
"""

from datapatterns_migrations.placement import run

revision = "dp0013"
down_revision = "dp0012"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.subject_key (
    tenant text NOT NULL,
    subject text NOT NULL,
    wrapped_key bytea,                -- gone once the person is forgotten
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    shredded_at timestamptz,
    CONSTRAINT pk_subject_key PRIMARY KEY (tenant, subject),
    CONSTRAINT ck_subject_key_shredded CHECK ((wrapped_key IS NULL) = (shredded_at IS NOT NULL))
);

-- Whose data a state holds; it is encrypted under the keys of all of them.
ALTER TABLE {schema}.snapshot ADD COLUMN subjects text[];
CREATE INDEX ix_snapshot_subjects ON {schema}.snapshot USING gin (subjects)
    WHERE subjects IS NOT NULL;

-- Roles that get SELECT on every new table of this schema do not get it on keys.
DO $$
DECLARE
    held record;
BEGIN
    FOR held IN
        SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC'
                        ELSE quote_ident(pg_get_userbyid(grantee)) END AS role
          FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(c.relacl)
         WHERE c.oid = '{schema}.subject_key'::regclass AND grantee <> c.relowner
    LOOP
        EXECUTE 'REVOKE ALL ON {schema}.subject_key FROM ' || held.role;
    END LOOP;
END $$;
"""

FUNCTIONS = """
-- The keys of these persons, held until the transaction ends: nobody forgets them meanwhile, and
-- who is being forgotten is waited for. KEY SHARE, so that keys can be wrapped anew meanwhile.
-- p_wrapped: new keys, for those who have none yet; NULL to create none.
CREATE FUNCTION {schema}.hold_subject_keys(p_tenant text, p_subjects text[], p_wrapped bytea[])
RETURNS TABLE (subject text, wrapped_key bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF p_wrapped IS NOT NULL THEN
        -- Sorted here and below, so that no two transactions wait for each other.
        INSERT INTO {schema}.subject_key AS k (tenant, subject, wrapped_key)
        SELECT p_tenant, u.subject, u.wrapped
          FROM unnest(p_subjects, p_wrapped) AS u (subject, wrapped)
         ORDER BY u.subject
            ON CONFLICT (tenant, subject) DO NOTHING;
    END IF;
    RETURN QUERY
        SELECT k.subject, k.wrapped_key FROM {schema}.subject_key AS k
         WHERE k.tenant = p_tenant AND k.subject = ANY (p_subjects)
         ORDER BY k.subject
           FOR KEY SHARE;
END $$;

CREATE FUNCTION {schema}.read_subject_keys(p_tenants text[], p_subjects text[])
RETURNS TABLE (tenant text, subject text, wrapped_key bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT k.tenant, k.subject, k.wrapped_key
      FROM unnest(p_tenants, p_subjects) AS u (tenant, subject)
      JOIN {schema}.subject_key AS k ON k.tenant = u.tenant AND k.subject = u.subject
$$;

-- Take the key away for ever, and what was derived from it. One without a key gets the mark, too,
-- so that none is created later.
CREATE FUNCTION {schema}.shred_subject(p_tenant text, p_subject text)
RETURNS TABLE (shredded_now boolean, had_key boolean, snapshots bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known record;
BEGIN
    INSERT INTO {schema}.subject_key (tenant, subject, shredded_at)
    VALUES (p_tenant, p_subject, clock_timestamp())
        ON CONFLICT (tenant, subject) DO NOTHING;
    shredded_now := FOUND;
    had_key := false;
    IF NOT shredded_now THEN
        -- Waits for appends and snapshots that hold the key.
        SELECT k.wrapped_key INTO known FROM {schema}.subject_key AS k
         WHERE k.tenant = p_tenant AND k.subject = p_subject
           FOR UPDATE;
        shredded_now := known.wrapped_key IS NOT NULL;
        had_key := shredded_now;
        UPDATE {schema}.subject_key AS k SET wrapped_key = NULL, shredded_at = clock_timestamp()
         WHERE k.tenant = p_tenant AND k.subject = p_subject AND k.wrapped_key IS NOT NULL;
    END IF;
    DELETE FROM {schema}.snapshot AS n USING {schema}.stream AS s
     WHERE s.id = n.stream_id AND s.tenant = p_tenant
       AND n.subjects IS NOT NULL AND n.subjects @> ARRAY[p_subject];
    GET DIAGNOSTICS snapshots = ROW_COUNT;
    RETURN NEXT;
END $$;

REVOKE ALL ON FUNCTION {schema}.hold_subject_keys(text, text[], bytea[]),
    {schema}.read_subject_keys(text[], text[]), {schema}.shred_subject(text, text) FROM PUBLIC;
"""

BEFORE = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.subject_key) THEN
        RAISE EXCEPTION 'the keys of persons would be lost, and with them what they encrypt'
            USING HINT = 'Empty subject_key yourself if that is what you want.';
    END IF;
END $$;
DROP FUNCTION {schema}.hold_subject_keys(text, text[], bytea[]);
DROP FUNCTION {schema}.read_subject_keys(text[], text[]);
DROP FUNCTION {schema}.shred_subject(text, text);
DROP TABLE {schema}.subject_key;
DROP INDEX {schema}.ix_snapshot_subjects;
ALTER TABLE {schema}.snapshot DROP COLUMN subjects;
"""


def upgrade() -> None:
    run(TABLES)
    run(FUNCTIONS)


def downgrade() -> None:
    run(BEFORE)
