"""Did a crash come between two reads, although no error told of it?

A pool that tests its connections replaces one that a crash has ended, and whoever asks gets the
new one without a word. But positions that were drawn before the crash may be drawn again, for
other events, so what a reader keeps in memory of them counts for nothing then.
"""

from datetime import datetime
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import TIMESTAMP

_KEY = "datapatterns.same_server"


class _Place:
    """A place in a pool, which outlives its connection."""


class _Session:
    """One connection of the driver."""

    def __init__(self, started: datetime) -> None:
        self.started = started


class SameServer:
    """Remembers with which server one reader spoke; it asks once for each new connection.

    A crash that restarts the sessions of a server, but not the server, shows only where a place in
    the pool has got another connection.
    """

    def __init__(self) -> None:
        self._sessions: WeakKeyDictionary[_Place, _Session] = WeakKeyDictionary()
        self._started: datetime | None = None

    def forget(self) -> None:
        """Begin anew: whatever comes next is the same."""
        self._sessions.clear()
        self._started = None

    def answers(self, conn: Connection) -> bool:
        """Return whether it is certain that no crash came since the last call."""
        pooled = conn.connection
        assert pooled.record_info is not None  # a place in the pool is what it has
        place = pooled.record_info.setdefault(_KEY, _Place())
        session: _Session | None = pooled.info.get(_KEY)
        if session is None:
            started = func.pg_postmaster_start_time(type_=TIMESTAMP(timezone=True))
            session = pooled.info[_KEY] = _Session(conn.execute(select(started)).scalar_one())
        is_same = (
            self._started in {None, session.started}
            and self._sessions.get(place, session) is session
        )
        if not is_same:
            self.forget()
        self._sessions[place] = session
        self._started = session.started
        return is_same
