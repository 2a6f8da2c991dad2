"""Transactions that would find a promoted table empty, for their snapshot is older than its rows.

A reader under REPEATABLE READ that first looks into a table after the swap finds the new one, by
its name, with the rows that were there when its transaction began: none, if the build came later.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, text

from datapatterns.errors import MissingRightsError

_HOLDERS: Final = text("""
SELECT pid, backend_start, xact_start, backend_xmin::text,
       query = '<insufficient privilege>' AS is_hidden
FROM pg_catalog.pg_stat_activity
WHERE datname = current_database() AND pid <> pg_catalog.pg_backend_pid()
  AND (backend_xmin IS NOT NULL AND backend_type = 'client backend'
       OR query = '<insufficient privilege>' AND usename IS NOT NULL)
""")


class SnapshotHolder(NamedTuple):
    """A session, while it has one snapshot."""

    pid: int
    backend_start: datetime
    xact_start: datetime | None
    xmin: str


def read_holders(conn: Connection) -> frozenset[SnapshotHolder]:
    """Return who has a snapshot in this database now; each look needs a transaction of its own.

    Raises:
        MissingRightsError: The role may not know that of the sessions of others.
    """
    rows = conn.execute(_HOLDERS).all()
    if any(row.is_hidden for row in rows):
        raise MissingRightsError(
            "permission denied to see whether sessions of other roles hold old snapshots"
            " (it takes pg_read_all_stats)"
        )
    return frozenset(SnapshotHolder(*row[:4]) for row in rows)


def still_there(
    old: Iterable[SnapshotHolder], now: frozenset[SnapshotHolder]
) -> list[SnapshotHolder]:
    """Return those whose snapshot may still be the old one."""
    return sorted(holder for holder in old if holder in now)
