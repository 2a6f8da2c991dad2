"""Tell a standby from the primary without asking the server."""

from psycopg import BaseConnection
from sqlalchemy import Connection, func, select

from datapatterns.errors import SettingsError


def is_standby(conn: Connection) -> bool:
    """Return whether ``conn`` reads from a server that replays another's log.

    What it shows may be older than an invalidation that has already arrived, so nothing that was
    read there may be stored.
    """
    driver = conn.connection.driver_connection
    if isinstance(driver, BaseConnection):
        # PostgreSQL tells at connect and whenever it changes.
        reported = driver.info.parameter_status("in_hot_standby")
        if reported is not None:
            return reported == "on"
    return bool(conn.scalar(select(func.pg_is_in_recovery())))


def refuse_standby(conn: Connection) -> None:
    """Refuse a connection on which invalidations can neither be recorded nor relayed.

    Raises:
        SettingsError: It leads to a standby.
    """
    if is_standby(conn):
        raise SettingsError("engine", "it leads to a standby; a cache needs the primary")
