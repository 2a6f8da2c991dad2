"""Statements that may take as long as a table is large."""

from typing import Final

from sqlalchemy import Connection, text

_WITHOUT_END: Final = text("SELECT set_config('statement_timeout', '0', true)")


def allow_long_statements(conn: Connection) -> None:
    """Let a COPY or an index of this transaction take its time.

    A role's statement_timeout is meant for its everyday queries: a large table could never be
    built under it.
    """
    conn.execute(_WITHOUT_END)
