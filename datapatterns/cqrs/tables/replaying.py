"""What a read model in a table should hold: the log, folded anew into a temporary table."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final

from sqlalchemy import Column, Connection, MetaData, Table
from sqlalchemy.schema import CreateTable, DropTable

from datapatterns.cqrs.definition import Projection
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.tables.projecting import (
    UnappliableError,
    apply_events,
    describe_stop,
    find_poison,
    read_page,
)
from datapatterns.cqrs.tables.read_model import ReadModel, read_model_of
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import reading, resuming

_IDENTIFIER_BYTES_MAX: Final = 63


@dataclass(slots=True)
class Replay:
    """A temporary table that holds the read model as of ``position``; of one connection.

    Page by page in transactions of their own, so it holds back neither vacuum nor anybody else.
    """

    store: EventStore
    projection: type[Projection]
    model: ReadModel
    page_events: int
    position: Position = START

    def page(self, conn: Connection, *, until: Position | None = None) -> ProjectionProgress:
        """Fold the next page in the caller's transaction, up to ``until`` if that is given.

        Raises:
            UnappliableError: An event cannot be applied; `diagnose` says which.
        """
        page = read_page(conn, self.store, self.projection, self.position, self.page_events)
        events, checkpoint = page.events, page.checkpoint
        if until is not None:
            events = [event for event in events if event.position <= until]
            checkpoint = min(checkpoint, until)
        self._apply(conn, events)
        self.position = checkpoint
        caught_up = page.caught_up or checkpoint == until
        return ProjectionProgress(len(events), checkpoint, caught_up)

    def diagnose(self, conn: Connection) -> Exception | None:
        """Return the error that names the event at which `page` fails."""
        page = read_page(conn, self.store, self.projection, self.position, self.page_events)
        length, error = find_poison(conn, self.store, self.projection, self.model, page.events)
        if error is None:
            return None
        return describe_stop(self.projection, page.events[length], error)[1]

    def _apply(self, conn: Connection, events: list[RecordedEvent]) -> None:
        if events:
            apply_events(conn, self.store, self.projection, self.model, events)


@contextmanager
def replayed(
    conn: Connection, store: EventStore, projection: type[Projection], *, page_events: int
) -> Iterator[Replay]:
    """Give an empty replay; its table goes at the end, or with the connection."""
    model = _replay_model(projection)
    this = f"a replay of projection {projection.name}"
    with resuming(conn, this):
        conn.execute(CreateTable(model.table))
    try:
        yield Replay(store, projection, model, page_events)
    finally:
        if not conn.invalidated:
            with resuming(conn, this):
                conn.execute(DropTable(model.table))


def advance_replay(
    conn: Connection,
    replay: Replay,
    *,
    until: Position | None = None,
    in_page: Callable[[Connection], None] = lambda _: None,
    on_page: Callable[[ProjectionProgress], None] = lambda _: None,
) -> ProjectionProgress:
    """Replay to ``until``, or to the end of the log.

    Args:
        conn: The connection of the temporary table, without a transaction.
        replay: What to go on with.
        until: The last position to apply.
        in_page: Called within the transaction of each page.
        on_page: Called after it.

    Raises:
        ProjectionStoppedError: An event cannot be applied.
    """
    while True:
        before = replay.position
        try:
            with resuming(conn, f"a replay of projection {replay.projection.name}"):
                done = replay.page(conn, until=until)
                in_page(conn)
        except UnappliableError:
            replay.position = before
            with reading(conn):
                stopped = replay.diagnose(conn)
            if stopped is None:
                raise
            raise stopped from stopped.__cause__
        on_page(done)
        if done.caught_up:
            return done


@cache
def _replay_model(projection: type[Projection]) -> ReadModel:
    model = read_model_of(projection)
    name = f"replay_of_{projection.name}"[:_IDENTIFIER_BYTES_MAX]
    columns = [
        Column(c.name, c.type, primary_key=c.primary_key, autoincrement=False)
        for c in model.columns
    ]
    table = Table(name, MetaData(), *columns, schema="pg_temp", prefixes=["TEMPORARY"])
    return model.in_table(table)
