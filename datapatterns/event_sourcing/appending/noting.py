"""Note how far a transaction has appended, whoever appends in it: the token for its readers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from datapatterns.event_sourcing.events import START, Position

_PLACE: Final = "datapatterns.appended"


@dataclass(slots=True)
class Noted:
    """The last position that was appended; `START` if none was."""

    position: Position = START


@contextmanager
def noting_appends(conn: Connection) -> Iterator[Noted]:
    """Note the last position that is appended on ``conn`` within the block.

    An append that a savepoint has undone counts, too: to wait for its position does no harm.
    """
    info, noted = conn.info, Noted()
    info[_PLACE] = noted
    try:
        yield noted
    finally:
        del info[_PLACE]


def note_append(conn: Connection, position: Position) -> None:
    """Tell who is noting appends on ``conn``, if anybody is."""
    noted = conn.info.get(_PLACE)
    if isinstance(noted, Noted):
        noted.position = max(noted.position, position)
