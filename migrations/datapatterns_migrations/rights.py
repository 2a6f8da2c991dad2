"""Rights of functions that take the place of others. Revisions may import this module."""

_CARRY = """
DO $$
DECLARE
    held record;
    known aclitem[] := (
        SELECT proacl FROM pg_catalog.pg_proc WHERE oid = '{known}'::regprocedure);
BEGIN
    IF known IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_catalog.aclexplode(known) WHERE grantee = 0) THEN
        REVOKE ALL ON FUNCTION {made} FROM PUBLIC;
    END IF;
    FOR held IN
        SELECT DISTINCT pg_get_userbyid(grantee) AS role FROM pg_catalog.aclexplode(known)
         WHERE grantee <> 0
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {made} TO %I', held.role);
    END LOOP;
END $$;
"""


def execute_carried(known: str, *made: str) -> str:
    """Return statements that let those execute ``made``, and only those, who may ``known``.

    Functions are given with their schema and the types of their parameters.
    """
    return _CARRY.replace("{known}", known).replace("{made}", ", ".join(made))
