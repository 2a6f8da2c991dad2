"""Commits that no crash of the server takes back, whatever its database or the role prefers."""

from psycopg import sql
from sqlalchemy import Connection

from datapatterns.sql.composing import execute

DURABLY = sql.SQL(
    "SELECT set_config('synchronous_commit', 'on', true)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)
"""What makes it so for one transaction; what is stricter than ``on`` stays."""


def commit_durably(conn: Connection) -> None:
    """Let the caller's transaction be answered when its commit is safe."""
    execute(conn, DURABLY).close()
