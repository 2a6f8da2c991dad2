"""A table and its partitions, and what would keep some of their changes from being captured.

DML on a partitioned table fires its own statement triggers, DML on a partition those of the
partition; so each of them needs triggers, and an obstacle at one is an obstacle to all.
"""

from dataclasses import dataclass
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, Row, text

from datapatterns.errors import CaptureRefusedError

_TREE = text("""
WITH RECURSIVE tree (oid, depth, is_detaching) AS (
    SELECT CAST(:oid AS oid), 0, false
    UNION ALL
    SELECT i.inhrelid, tree.depth + 1, i.inhdetachpending
    FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid)
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind, tree.depth,
       tree.is_detaching, c.relpersistence AS persistence, c.relrowsecurity AS secured,
       (SELECT i.inhparent::regclass::text FROM pg_catalog.pg_inherits i
        WHERE i.inhrelid = c.oid LIMIT 1) AS parent,
       (SELECT hash_record_extended(ROW(i.inhrelid, i.inhparent, i.xmin), 0)
        FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid LIMIT 1) AS attachment,
       (SELECT hash_record_extended(
            ROW(i.inhrelid, i.inhparent, pg_get_expr(c.relpartbound, c.oid)), 0)
        FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid LIMIT 1) AS place,
       EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid) AS has_children,
       EXISTS (SELECT FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = c.oid) AS subscribes,
       -- Row triggers fire by name; ours, which looks at what the others made of a row, is ~last.
       (SELECT g.tgname FROM pg_catalog.pg_trigger g
        WHERE g.tgrelid = c.oid AND g.tgtype & 19 = 19 AND g.tgname >= '~'
          AND g.tgname !~ '^~[a-z0-9_]+_capture_move$' LIMIT 1) AS last_trigger,
       -- A key's columns, also those in an expression, depend on the table as a whole.
       ARRAY (SELECT a.attname::text FROM pg_catalog.pg_depend d
              JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid
              WHERE c.relkind = 'p' AND d.deptype = 'i' AND d.objsubid > 0 AND d.refobjsubid = 0
                AND d.classid = 'pg_class'::regclass AND d.objid = c.oid
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
              ORDER BY a.attnum) AS keys
FROM tree
JOIN pg_catalog.pg_class c ON c.oid = tree.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY tree.depth, n.nspname, c.relname
""")
_KINDS = {
    "f": "it is a foreign table, which others change without triggers here",
    "v": "it is a view; capture the tables below it",
    "m": "it is a materialized view, which fires no triggers",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A captured table or one of its partitions, at any depth.

    Attributes:
        oid: Its oid.
        schema: Its schema.
        name: Its name without the schema.
        is_partitioned: Whether it has partitions of its own, or may get some.
        keys: The columns that decide which of its partitions a row belongs to; none if it has no
            partitions.
        attachment: A hash of how the catalogue has it below its parent; another one if it went
            and came back. None for the table itself.
        place: A hash of its parent and its bounds; the same if it comes back to them.
    """

    oid: int
    schema: str
    name: str
    is_partitioned: bool
    keys: tuple[str, ...]
    attachment: int | None
    place: int | None

    @property
    def identifier(self) -> sql.Identifier:
        """Return the name for SQL."""
        return sql.Identifier(self.schema, self.name)


def read_members(conn: Connection, oid: int, *, allow_row_security: bool) -> list[Member]:
    """Return the table, then its partitions.

    Raises:
        CaptureRefusedError: Some changes would be missed.
    """
    rows = conn.execute(_TREE, {"oid": oid}).all()
    for row in rows:
        reason = _obstacle(row, allow_row_security=allow_row_security)
        if rows[0].kind == "p" and row.last_trigger is not None:
            reason = reason or (
                f"its trigger {row.last_trigger!r} may move rows after everybody has looked; give"
                " it a name that does not begin with a tilde or a letter beyond ASCII"
            )
        if reason:
            raise CaptureRefusedError(_called(rows[0]), _located(row, reason))
    return [
        Member(
            row.oid,
            row.schema,
            row.name,
            row.kind == "p",
            tuple(row.keys),
            row.attachment,
            row.place,
        )
        for row in rows
    ]


def _obstacle(row: Row[Any], *, allow_row_security: bool) -> str | None:
    if row.kind in _KINDS:
        return _KINDS[row.kind]
    obstacles = {
        f"it is part of {row.parent}, through which its rows change, too; capture that one": (
            row.depth == 0 and row.parent is not None
        ),
        "other tables inherit from it, so its rows change through them; partition it instead": (
            row.kind == "r" and row.has_children
        ),
        "it is a temporary table, which only one session sees": row.persistence == "t",
        "it is unlogged, so a crash empties it without a trace": row.persistence == "u",
        "it is being detached; wait until it is, or finish what was interrupted, with DETACH"
        " PARTITION ... FINALIZE": row.is_detaching,
        "a logical subscription fills it, and that fires no statement triggers; capture changes"
        " where they are made": row.subscribes,
        "it has row-level security, which the log gets around; say allow_row_security=True if"
        " whoever may read what is derived from it may see all rows": (
            row.secured and not allow_row_security
        ),
    }
    return next((reason for reason, holds in obstacles.items() if holds), None)


def _located(row: Row[Any], reason: str) -> str:
    return reason if row.depth == 0 else f"of its partition {_called(row)}, {reason}"


def _called(row: Row[Any]) -> str:
    return f"{row.schema}.{row.name}"
