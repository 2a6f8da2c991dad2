"""Let an application append without any right on the tables of the event store.

Whoever may insert into ``event`` chooses positions and times. So the one function that appends
runs as its owner, and applications get EXECUTE on it in place of INSERT and UPDATE.

Revision ID: dp0009
Revises: dp0008
"""

from datapatterns_migrations.placement import run

revision = "dp0009"
down_revision = "dp0008"
branch_labels = None
depends_on = None

FENCE = """
-- As in dp0002, but a session that writes the note itself gains nothing: the lock is taken again
-- in any case (of a lock that is held already that is a counter in the session's own memory), and
-- any bound that was drawn already fences all that is drawn from now on. One too far below would
-- be taken for one of the future, hence the second condition.
CREATE OR REPLACE FUNCTION {schema}.raise_fence() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    drawn bigint := pg_sequence_last_value('{schema}.event_position');
    class oid := '{schema}.event_position'::regclass::oid;
    transaction text := pg_current_xact_id()::text;
    note text := 'datapatterns.fence_' || class;
    noted text := current_setting(note, true);
    bound bigint;
BEGIN
    IF drawn IS NULL THEN
        RAISE EXCEPTION 'event_position cannot be read, or was restarted'
            USING HINT = 'Grant SELECT and USAGE on it; use setval(..., n), not RESTART.';
    END IF;
    IF split_part(noted, ':', 1) = transaction THEN
        bound := nullif(split_part(noted, ':', 2), '')::bigint;
    END IF;
    IF bound IS NULL OR bound > drawn OR drawn - bound >= 1073741824 THEN
        bound := drawn;
        PERFORM set_config(note, transaction || ':' || bound, true);
    END IF;
    PERFORM pg_advisory_xact_lock_shared(class::int, (bound & 2147483647)::int);
END $$;
"""

RIGHTS = """
ALTER FUNCTION {schema}.append_events(
    text, text, text, bigint, text[], integer[], uuid[], text[], text[], bigint)
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION {schema}.raise_fence_before_insert()
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp;

-- Who could do it before, still can: EXECUTE goes to the roles that hold what it took until now.
DO $$
DECLARE
    held oid;
    event_acl aclitem[] := (
        SELECT array_agg(item) FROM (
            SELECT unnest(relacl) AS item FROM pg_catalog.pg_class
             WHERE oid = '{schema}.event'::regclass
            UNION ALL
            SELECT unnest(attacl) FROM pg_catalog.pg_attribute
             WHERE attrelid = '{schema}.event'::regclass) AS items);
BEGIN
    FOR held IN
        SELECT DISTINCT grantee FROM pg_catalog.aclexplode(event_acl)
         WHERE privilege_type = 'INSERT' AND grantee <> 0
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.append_events(text, text, text,'
            ' bigint, text[], integer[], uuid[], text[], text[], bigint) TO %I',
            pg_get_userbyid(held));
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_catalog.aclexplode(event_acl)
                    WHERE privilege_type = 'INSERT' AND grantee = 0) THEN
        REVOKE ALL ON FUNCTION {schema}.append_events(text, text, text, bigint, text[],
            integer[], uuid[], text[], text[], bigint) FROM PUBLIC;
    END IF;
    FOR held IN
        SELECT DISTINCT acl.grantee
          FROM pg_catalog.pg_namespace AS n, pg_catalog.aclexplode(n.nspacl) AS acl
         WHERE n.nspname = '{schema}' AND acl.privilege_type = 'USAGE' AND acl.grantee <> 0
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.claim_buckets(int, int[]),'
            ' {schema}.claim_shard(int, text) TO %I', pg_get_userbyid(held));
    END LOOP;
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_namespace AS n, pg_catalog.aclexplode(n.nspacl) AS acl
         WHERE n.nspname = '{schema}' AND acl.privilege_type = 'USAGE' AND acl.grantee = 0) THEN
        REVOKE ALL ON FUNCTION {schema}.claim_buckets(int, int[]),
            {schema}.claim_shard(int, text) FROM PUBLIC;
    END IF;
END $$;
REVOKE ALL ON FUNCTION {schema}.raise_fence_before_insert() FROM PUBLIC;
"""

FENCE_BEFORE = """
CREATE OR REPLACE FUNCTION {schema}.raise_fence() RETURNS void LANGUAGE plpgsql AS $$
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
"""

RIGHTS_BEFORE = """
ALTER FUNCTION {schema}.append_events(
    text, text, text, bigint, text[], integer[], uuid[], text[], text[], bigint)
    SECURITY INVOKER RESET ALL;
ALTER FUNCTION {schema}.raise_fence_before_insert() SECURITY INVOKER RESET ALL;
GRANT EXECUTE ON FUNCTION {schema}.append_events(
    text, text, text, bigint, text[], integer[], uuid[], text[], text[], bigint),
    {schema}.raise_fence_before_insert(),
    {schema}.claim_buckets(int, int[]), {schema}.claim_shard(int, text) TO PUBLIC;
"""


def upgrade() -> None:
    run(FENCE)
    run(RIGHTS)


def downgrade() -> None:
    run(RIGHTS_BEFORE)
    run(FENCE_BEFORE)
