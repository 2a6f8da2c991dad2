"""Is what keeps events append-only in place: triggers, rights, the sequence, settings?

It looks from the outside: whether the triggers' functions are the library's own, `migrate check`
tells; whether the events are what they were, a hash chain does.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema


@dataclass(frozen=True, slots=True)
class AppendOnlyFinding:
    """One thing that lets events be changed or lost.

    Attributes:
        is_error: It takes a promise away; else it is worth a look.
        subject: The table, role or setting.
        problem: What is wrong, and what to do.
    """

    is_error: bool
    subject: str
    problem: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}"


def check_append_only(conn: Connection, *, schema: str = DEFAULT_SCHEMA) -> list[AppendOnlyFinding]:
    """Return what lets somebody else than the owner change events, errors first.

    Superusers and the owner are not listed: what they may do, they may. INSERT on
    ``event_seal`` is what a worker that seals needs, DELETE on ``append_request`` one that forgets.
    """
    rows = conn.execute(_FINDINGS, {"schema": checked_schema(schema)})
    return [AppendOnlyFinding(is_error, subject, problem) for is_error, subject, problem in rows]


_FINDINGS = text("""
WITH kept (name) AS (
    VALUES ('event'), ('event_archive'), ('event_seal'), ('event_purge'), ('event_tombstone'),
           ('stream'), ('event_type'), ('event_tag'), ('append_request'), ('mark')
), needed (name, trigger, kind, function) AS (  -- kind: when and on what, as pg_trigger.tgtype
    VALUES ('event', 'raise_fence', 6, 'raise_fence_before_insert'),
           ('event', 'append_only', 50, 'refuse_change_of_events'),
           ('event', 'moves_only', 8, 'refuse_loss_of_events'),
           ('event_archive', 'append_only', 50, 'refuse_change_of_events'),
           ('event_archive', 'moves_only', 8, 'refuse_loss_of_archive'),
           ('event_archive', 'one_place', 4, 'refuse_second_copy'),
           ('event_seal', 'append_only', 58, 'refuse_change_of_events'),
           ('event_purge', 'append_only', 58, 'refuse_change_of_events'),
           ('event_tombstone', 'append_only', 58, 'refuse_change_of_events')
), granted (name, privilege) AS (  -- what a worker may: seal, and forget old requests
    VALUES ('event_seal', 'INSERT'), ('append_request', 'DELETE')
), tables AS (
    SELECT c.oid, c.relname::text AS name, c.relowner AS owner, c.relacl AS acl, kept.name AS kind,
           c.relpersistence, c.relrowsecurity
      FROM kept JOIN pg_class AS c ON c.relname = kept.name
       AND c.relnamespace = to_regnamespace(:schema)
    UNION ALL
    SELECT c.oid, c.relname::text, c.relowner, c.relacl, kept.name, c.relpersistence,
           c.relrowsecurity
      FROM kept JOIN pg_class AS p ON p.relname = kept.name
       AND p.relnamespace = to_regnamespace(:schema)
      JOIN pg_inherits AS i ON i.inhparent = p.oid JOIN pg_class AS c ON c.oid = i.inhrelid
), rights AS (
    SELECT t.name, a.grantee, a.privilege_type FROM tables AS t, aclexplode(t.acl) AS a
     WHERE a.grantee <> t.owner
       AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')
       AND (t.name, a.privilege_type) NOT IN (SELECT name, privilege FROM granted)
    UNION
    SELECT t.name, a.grantee, a.privilege_type FROM tables AS t
      JOIN pg_attribute AS c ON c.attrelid = t.oid, aclexplode(c.attacl) AS a
     WHERE a.grantee <> t.owner AND a.privilege_type IN ('INSERT', 'UPDATE')
       AND (t.name, a.privilege_type) NOT IN (SELECT name, privilege FROM granted)
    UNION
    SELECT s.relname::text, a.grantee, a.privilege_type
      FROM pg_class AS s, aclexplode(s.relacl) AS a
     WHERE s.relname = 'event_position' AND s.relnamespace = to_regnamespace(:schema)
       AND a.grantee <> s.relowner AND a.privilege_type IN ('UPDATE', 'USAGE')
), findings (is_error, subject, problem) AS (
    SELECT true, wanted.name, 'it is not there; migrate'
      FROM kept AS wanted WHERE NOT EXISTS (SELECT FROM tables WHERE tables.name = wanted.name)
    UNION ALL
    SELECT true, t.name, format('trigger %s is missing, disabled or changed;'
                                ' see datapatterns migrate check', w.trigger)
      FROM tables AS t JOIN needed AS w ON w.name = t.kind
     WHERE NOT EXISTS (
           SELECT FROM pg_trigger AS g JOIN pg_proc AS p ON p.oid = g.tgfoid
            WHERE g.tgrelid = t.oid AND g.tgname = w.trigger AND g.tgtype = w.kind
              AND g.tgqual IS NULL AND g.tgattr = ''::int2vector AND p.proname = w.function
              AND p.pronamespace = to_regnamespace(:schema)
              AND g.tgenabled = ANY (CASE w.trigger WHEN 'raise_fence' THEN '{A}' ELSE '{O,A}' END
                                     ::"char"[]))
    UNION ALL
    SELECT true, t.name, 'ck_event_bound of a partitioning that was broken off refuses what is'
           ' appended from a position on; partition again, or undo it'
      FROM tables AS t JOIN pg_constraint AS b ON b.conrelid = t.oid
     WHERE b.conname = 'ck_event_bound'
    UNION ALL
    SELECT true, t.name, 'a crash empties it; ALTER it to SET LOGGED'
      FROM tables AS t WHERE t.relpersistence <> 'p'
    UNION ALL
    SELECT true, t.name, 'row security hides rows of it, so that readers skip events; disable that'
      FROM tables AS t WHERE t.relrowsecurity
    UNION ALL
    SELECT true, t.name, format('rule %I rewrites what is sent to it; drop it', r.rulename)
      FROM tables AS t JOIN pg_rewrite AS r ON r.ev_class = t.oid
    UNION ALL
    SELECT true, r.name, format('%s may %s; REVOKE it, appends need EXECUTE on append_events only',
           CASE r.grantee WHEN 0 THEN 'everybody' ELSE pg_get_userbyid(r.grantee) END,
           string_agg(r.privilege_type, ', ' ORDER BY r.privilege_type))
      FROM rights AS r GROUP BY r.name, r.grantee
    UNION ALL
    SELECT DISTINCT true, m.rolname::text,
           'it is a member of pg_write_all_data, so it may write every table; REVOKE that'
      FROM pg_roles AS m JOIN pg_roles AS g ON g.rolname = 'pg_write_all_data'
     WHERE NOT m.rolsuper AND m.oid <> g.oid AND pg_has_role(m.oid, g.oid, 'MEMBER')
    UNION ALL
    SELECT DISTINCT false, m.rolname::text,
           format('it is a member of %I, which owns events, and may do what that may',
                  g.rolname)
      FROM tables AS t JOIN pg_roles AS g ON g.oid = t.owner AND NOT g.rolsuper
      JOIN pg_roles AS m ON m.oid <> g.oid AND NOT m.rolsuper
       AND pg_has_role(m.oid, g.oid, 'MEMBER')
    UNION ALL
    SELECT true, 'event_position', 'readers skip events unless it is CACHE 1 INCREMENT 1 NO CYCLE;'
           ' ALTER it'
      FROM pg_sequence AS q JOIN pg_class AS c ON c.oid = q.seqrelid
     WHERE c.relname = 'event_position' AND c.relnamespace = to_regnamespace(:schema)
       AND (q.seqcache, q.seqincrement, q.seqcycle) <> (1, 1, false)
    UNION ALL
    SELECT false, name, format('it is %s; %s', setting, CASE name
           WHEN 'session_replication_role' THEN 'triggers do not fire in this session'
           WHEN 'synchronous_commit' THEN 'a crash takes back events whose append was answered'
           ELSE 'a crash of the machine can destroy events, and not only the last ones' END)
      FROM pg_settings
     WHERE (name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off')
        OR (name = 'session_replication_role' AND setting <> 'origin')
)
SELECT is_error, subject, problem FROM findings ORDER BY is_error DESC, subject, problem
""")
