"""Transactions that have nothing to do with the log, and who watches the mark meanwhile."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event
from types import TracebackType
from typing import Self

from sqlalchemy import URL, Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.event_sourcing import START, EventStore, Position, publish_mark
from datapatterns.testing import wait_until
from tests.torture.persisting import connected
from tests.torture.plan import ENOUGH_SECONDS

STORE = EventStore()
OTHER_DATABASE = "torture_elsewhere"
_LAST = text("SELECT pg_sequence_last_value('datapatterns.event_position')")
_POLL_SECONDS = 0.003


class Bystanders:
    """A writer of another table, one in another database, and one that read and went idle."""

    def __init__(self, url: URL) -> None:
        self._engines = [
            create_engine(each, poolclass=NullPool)
            for each in (url, url.set(database=OTHER_DATABASE), url)
        ]
        self._open: list[Connection] = []

    def __enter__(self) -> Self:
        self.reopen()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def reopen(self) -> None:
        """Open their transactions, again after the server was killed."""
        self._close()
        here, elsewhere, reader = self._open = [engine.connect() for engine in self._engines]
        here.execute(text("INSERT INTO torture_other VALUES (0)"))
        elsewhere.execute(text("CREATE TEMPORARY TABLE other (n int)"))
        elsewhere.execute(text("INSERT INTO other VALUES (0)"))
        elsewhere.scalar(text("SELECT pg_current_xact_id()::text"))
        reader.execute(text("SELECT count(*) FROM datapatterns.stream"))
        reader.execute(text("SELECT pg_current_xact_id()::text"))

    def _close(self) -> None:
        for conn in self._open:
            conn.invalidate()  # it may be broken already
            conn.close()


@dataclass(slots=True)
class Watched:
    """What somebody saw who looked at the mark all the time.

    Attributes:
        lags: Seconds until the mark reached what had been drawn when each sample began.
        stepped_back: How often the raw mark was lower than before.
    """

    lags: list[float] = field(default_factory=list)
    stepped_back: int = 0


def watch(url: URL, done: Event) -> Watched:
    """Look at the mark until ``done``; it must reach every position in good time.

    Raises:
        TimeoutError: It did not.
    """
    watched = Watched()
    with connected(url, "torture-watcher") as engine:
        raw = START
        while not done.is_set():
            try:
                with engine.connect() as conn:
                    conn = conn.execution_options(isolation_level="AUTOCOMMIT")  # noqa: PLW2901
                    drawn, begun = conn.scalar(_LAST) or 0, time.monotonic()
                    raw = _wait_for_mark(conn, drawn, raw, watched)
                    watched.lags.append(time.monotonic() - begun)
            except DBAPIError:  # the server was killed; positions may be drawn once more
                raw = START
            done.wait(_POLL_SECONDS)
    return watched


def publish(url: URL, done: Event) -> None:
    """Publish the mark again and again, until ``done``."""
    with connected(url, "torture-publisher") as engine:
        while not done.wait(_POLL_SECONDS):
            with suppress(DBAPIError), engine.begin() as conn:  # the server was killed
                publish_mark(conn, STORE)


def _wait_for_mark(conn: Connection, drawn: int, raw: Position, watched: Watched) -> Position:
    """Return the first mark that is not below ``drawn``."""

    def reached() -> Position | None:
        nonlocal raw
        mark = STORE.high_water_mark(conn)
        watched.stepped_back += mark < raw
        raw = mark
        return mark if mark >= drawn else None

    if not drawn:
        return raw
    return wait_until(reached, deadline_seconds=ENOUGH_SECONDS)
