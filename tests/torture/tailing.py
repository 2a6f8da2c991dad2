"""Readers that follow the log while it is being written, each keeping one number."""

import hashlib
import struct
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Event
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import MarkUnpublishedError
from datapatterns.event_sourcing import START, EventStore, LogPage, Position
from tests.torture.persisting import connected, insist
from tests.torture.plan import How

STORE: Final = EventStore()
RECORD: Final = struct.Struct(">qq16s8s")
"""Position, version, id and stream of an event: so a million of them travel between processes."""

_PERSIST_EVERY = 40
_PAGE = 1_000
_POLL_SECONDS = 0.003

_STARTED = text("SELECT pg_postmaster_start_time()::text")
_PERSIST = text("UPDATE torture_reader SET position = :position WHERE name = :name")
_PERSISTED = text("SELECT position FROM torture_reader WHERE name = :name")
_VISIBLE = text(
    "SELECT e.position, s.key, e.version, e.event_id FROM datapatterns.event e"
    " JOIN datapatterns.stream s ON s.id = e.stream_id"
    " WHERE e.position > :after ORDER BY e.position LIMIT :limit"
)
_LAST = text("SELECT coalesce(max(position), 0) FROM datapatterns.event")


class Row(NamedTuple):
    """What a reader learns of an event."""

    position: int
    key: str
    version: int
    event_id: UUID


def packed(position: int, key: str, version: int, event_id: UUID) -> bytes:
    """Return an event as a `RECORD`."""
    stream = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return RECORD.pack(position, version, event_id.bytes, stream)


class Reading(NamedTuple):
    """What a reader was given, in that order, as `RECORD`s; and how often it had to go back."""

    seen: bytes
    went_back: int


Page = tuple[Sequence[Row], Position]
"""Events, and where to go on."""


class Reader:
    """Follows the log; after a crash of the server it goes back to what it had persisted."""

    def __init__(self, url: URL, name: str, how: How) -> None:
        self._url, self._name = url, name
        self._how = how
        self._seen = bytearray()
        self._at = START
        self._page: LogPage | None = None
        self._pages = 0
        self._server = ""
        self._went_back = 0

    def follow(self, written: Event) -> Reading:
        """Read until everything was given out that is there when nobody writes any more."""
        with connected(self._url, self._name) as plain:
            old_snapshots = self._how is How.MARK
            isolation = "REPEATABLE READ" if old_snapshots else "READ COMMITTED"
            engine = plain.execution_options(isolation_level=isolation)
            while True:
                was_written, advanced = written.is_set(), False
                try:
                    with engine.connect() as conn:
                        advanced = self._step(conn)
                        if was_written and not advanced and self._at >= (conn.scalar(_LAST) or 0):
                            return Reading(bytes(self._seen), self._went_back)
                except DBAPIError:
                    insist(lambda: _answers(engine.connect))
                if not advanced:
                    written.wait(_POLL_SECONDS)

    def _step(self, conn: Connection) -> bool:
        server = str(conn.scalar(_STARTED))
        if server != self._server:
            self._go_back(conn)
            self._server = server
            conn.rollback()
        before = self._at
        rows, checkpoint = self._next(conn)
        assert checkpoint >= before, f"{self._name} went back from {before} to {checkpoint}"
        for position, key, version, event_id in rows:
            assert self._at < position <= checkpoint, f"{position} after {self._at}"
            self._seen += packed(position, key, version, event_id)
            self._at = Position(position)
        self._at = checkpoint
        self._pages += 1
        if self._pages % _PERSIST_EVERY == 0:
            conn.rollback()
            conn.execute(_PERSIST, {"name": self._name, "position": checkpoint})
            conn.commit()
        return checkpoint > before

    def _next(self, conn: Connection) -> Page:
        if self._how is How.VISIBLE:
            return _visible(conn, self._at)
        after = self._page if self._how is How.PAGES and self._page else self._at
        try:
            page = STORE.read_log(conn, after, limit=_PAGE, published=self._how is How.MARK)
        except MarkUnpublishedError:
            return [], self._at
        self._page = page
        rows = [Row(e.position, e.stream.key, e.version, e.event_id) for e in page.events]
        return rows, page.checkpoint

    def _go_back(self, conn: Connection) -> None:
        """Forget what was not persisted: its position may be drawn once more."""
        persisted = conn.scalar(_PERSISTED, {"name": self._name}) or 0
        self._went_back += self._at > persisted
        self._at, self._page = Position(persisted), None
        while self._seen and RECORD.unpack_from(self._seen, -RECORD.size)[0] > persisted:
            del self._seen[-RECORD.size :]


def _answers(connect: Callable[[], Connection]) -> bool:
    with connect() as conn:
        conn.execute(_STARTED)
    return True


def _visible(conn: Connection, after: Position) -> Page:
    rows = [Row(*row) for row in conn.execute(_VISIBLE, {"after": after, "limit": _PAGE})]
    return rows, Position(rows[-1].position) if rows else after
