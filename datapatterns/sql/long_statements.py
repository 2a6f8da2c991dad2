"""Statements that may take as long as a table is large."""

from typing import Final

from sqlalchemy import Connection

from datapatterns.sql.composing import execute_written

_LIMITS: Final = ("statement_timeout", "idle_in_transaction_session_timeout")
_LIMITS_SINCE_17: Final = ("transaction_timeout",)
_SEVENTEEN: Final = (17,)


def allow_long_statements(conn: Connection) -> None:
    """Let this transaction, and a COPY, an index or a scan in it, take its time.

    A role's limits are meant for its everyday queries: under them a large table could never be
    built or compared. No snapshot is taken for it.
    """
    version = conn.dialect.server_version_info
    known = _LIMITS_SINCE_17 if version is not None and version >= _SEVENTEEN else ()
    execute_written(conn, "; ".join(f"SET LOCAL {limit} = 0" for limit in (*_LIMITS, *known)))
