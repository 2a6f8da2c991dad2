"""Load from a standby where that has replayed whatever had been invalidated before."""

import logging

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from datapatterns.breaker import Breaker
from datapatterns.cache_aside.older_snapshots import seen_before
from datapatterns.cache_aside.standby import is_standby
from datapatterns.cache_aside.writers import Home
from datapatterns.change_log.snapshots import Snapshot
from datapatterns.errors import SettingsError

logger = logging.getLogger(__name__)

_ITS_OWN = ("08", "40", "53", "57P")
"""SQLSTATEs, or their beginnings, that the primary need not answer with: no connection, a conflict
with recovery, no resources, a shutdown."""


class Replica:
    """What is known of a standby that values are loaded from.

    Args:
        home: The database of its primary.
        breaker: What decides whether to ask it at all.
    """

    def __init__(self, home: Home, breaker: Breaker) -> None:
        self._home = home
        self._breaker = breaker

    def allows(self) -> bool:
        """Return whether to ask it."""
        return self._breaker.allows()

    def seen_before(self, conn: Connection) -> Snapshot | None:
        """Return what a load that begins now sees for certain; None if this is no standby.

        Raises:
            SettingsError: It is one of another database.
        """
        if not is_standby(conn):
            return None  # promoted, perhaps: its transactions are not those of the primary
        if not self._home.has(conn):
            raise SettingsError("load_from", "it leads to another database than the cache's engine")
        return seen_before(conn)

    def succeeded(self) -> None:
        """Take note of an answer."""
        self._breaker.succeeded()

    def is_away(self, error: DBAPIError) -> bool:
        """Return whether an error is the replica's own, so that the primary may do better."""
        state = getattr(error.orig, "sqlstate", None)
        # Without a state it is the driver's: no connection, or a lost one.
        if state is not None and not str(state).startswith(_ITS_OWN):
            return False
        self._breaker.failed()
        logger.info("a value is loaded from the primary", extra={"error": type(error).__name__})
        return True
