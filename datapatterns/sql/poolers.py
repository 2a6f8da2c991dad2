"""Connections through a pooler that gives each transaction to whichever session is free.

What is set for a session, or prepared in it, is then there for some transactions and not for
others, and for those of strangers. PgBouncer and its like answer with a process id of their own
making when a connection begins; that tells them from a server.
"""

from collections.abc import Mapping
from typing import Any, Final

from psycopg import Connection as DriverConnection
from psycopg import sql
from sqlalchemy import Connection, Engine, PoolProxiedConnection, event

_POOLED: Final = "datapatterns_pooled"


def told_pid(connection: DriverConnection[Any]) -> int:
    """Return the process id that was told when the connection began; a pooler's is no server's."""
    return connection.info.backend_pid


def note_pooler(connection: Any, record: Any) -> None:  # noqa: ANN401 -- of two drivers, of the pool
    """Prepare nothing on a connection through a pooler from now on, and know it again."""
    driver = getattr(connection, "driver_connection", connection)
    driver.prepare_threshold = None
    record.info[_POOLED] = True


def is_pooled(conn: Connection | PoolProxiedConnection) -> bool:
    """Return whether a connection goes through a pooler."""
    return _POOLED in conn.info


def prepare_nothing_behind_poolers(engine: Engine) -> Engine:
    """Let connections of ``engine`` that go through a pooler prepare nothing; it costs a question.

    Returns:
        The engine.
    """

    @event.listens_for(engine, "connect")
    def ask(connection: Any, record: Any) -> None:  # noqa: ANN401 -- of two drivers, of the pool
        row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
        connection.rollback()
        if row[0] != told_pid(connection):
            note_pooler(connection, record)

    return engine


def settle_each_transaction(engine: Engine, settings: Mapping[str, str]) -> Engine:
    """Give each transaction through a pooler the settings that a session would have.

    It costs a round trip for each. No snapshot is taken, so an application may still choose its
    transaction's isolation level.

    Returns:
        The engine.
    """
    local = sql.SQL("; ").join(
        sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in settings.items()
    )

    def settle(conn: Connection, *_: object) -> None:
        if is_pooled(conn):
            cursor = conn.connection.cursor()
            try:
                cursor.execute(local)
            finally:
                cursor.close()

    event.listen(engine, "begin", settle)
    event.listen(engine, "begin_twophase", settle)
    return engine
