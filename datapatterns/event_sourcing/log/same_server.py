"""Did a crash come between two reads, although no error told of it?

A pool that tests its connections replaces one that a crash has ended, one without places opens
another each time, and whoever asks gets the new one without a word. But positions that were drawn
before the crash may be drawn again, for other events, so what a reader keeps in memory of them
counts for nothing then.
"""

from typing import Final

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import TIMESTAMP

from datapatterns.event_sourcing.log.following_flow import Life

_KEY: Final = "datapatterns.same_server"

# After the crash of a session all others are ended, and the server begins new statistics. The
# function answers whom the view is closed to, as well.
_LIFE: Final = select(
    func.pg_postmaster_start_time(type_=TIMESTAMP(timezone=True)),
    func.pg_stat_get_bgwriter_stat_reset_time(type_=TIMESTAMP(timezone=True)),
)


class SameServer:
    """Remembers in which life of which server one reader has read."""

    def __init__(self) -> None:
        self._life: Life | None = None

    def forget(self) -> None:
        """Begin anew: whatever comes next is the same."""
        self._life = None

    def answers(self, conn: Connection) -> bool:
        """Return whether it is certain that no crash came since the last call."""
        return self.lives(life_of(conn, self._life))

    def lives(self, life: Life) -> bool:
        """Return whether it is the same life as that of the last call."""
        is_same = self._life in {None, life}
        self._life = life
        return is_same


def life_of(conn: Connection, known: Life | None) -> Life:
    """Return in which life of which server ``conn`` reads: another one after each crash.

    No connection outlives a crash, so the server is asked only if the last answer is not what is
    ``known`` from elsewhere: an administrator may have reset the statistics in between.
    """
    answers = conn.connection.info
    if known is None or answers.get(_KEY) != known:
        started, recovered = conn.execute(_LIFE).one()
        answers[_KEY] = started, recovered
    life: Life = answers[_KEY]
    return life
