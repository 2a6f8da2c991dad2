"""Refuse writers whose invalidations would be recorded where no relay looks, or too early."""

from contextlib import suppress
from functools import cached_property
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Pool
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session

from datapatterns.cache_aside.older_snapshots import outlook_of
from datapatterns.change_log.identity import DatabaseIdentity, database_identity
from datapatterns.errors import IsolationLevelError, SettingsError


def checked_writer(writer: object) -> Connection | Session:
    """Return the connection or session that writes.

    Raises:
        SettingsError: It is neither.
    """
    if isinstance(writer, scoped_session):
        writer = writer()
    if not isinstance(writer, Connection | Session):
        raise SettingsError(
            "invalidate_in",
            f"a {type(writer).__name__} is no Connection and no Session; of an async one, await"
            " its run_sync(cache.invalidate_in, key)",
        )
    return writer


def refuse_autocommit(conn: Connection) -> None:
    """Refuse a connection that commits each statement by itself: the record might come first.

    Raises:
        IsolationLevelError: It is in autocommit mode.
    """
    dbapi_connection = conn.connection.dbapi_connection
    assert dbapi_connection is not None
    if conn.dialect.detect_autocommit_setting(dbapi_connection):
        raise IsolationLevelError(found="autocommit", needed="read committed or stricter")


class Home:
    """The one database whose outbox the relay reads.

    Args:
        engine: Its primary.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pools: WeakSet[Pool] = WeakSet()

    def refuse_strangers(self, conn: Connection) -> None:
        """Refuse a connection on which a record would not be found.

        Raises:
            SettingsError: It leads to another database.
        """
        if not self.has(conn):
            raise SettingsError(
                "invalidate_in",
                "it writes to another database than the cache's engine; give that one a cache of"
                " its own, with another target",
            )

    def has(self, conn: Connection) -> bool:
        """Return whether a connection leads to this database, or to a standby of it."""
        pool = conn.engine.pool
        if pool is self._engine.pool or pool in self._pools:
            return True
        if database_identity(conn) != self._identity:
            return False
        self._pools.add(pool)
        return True

    def outlook(self) -> str | None:
        """Return as what its connections read, see `outlook_of`; None if none can be had now."""
        with suppress(SQLAlchemyError):  # what was read is somebody's answer all the same
            return self._outlook
        return None

    @cached_property
    def _outlook(self) -> str:
        return outlook_of(self._engine)

    @cached_property
    def _identity(self) -> DatabaseIdentity:
        with self._engine.connect() as conn:
            return database_identity(conn)
