"""What a read model in a table should hold: the log, folded anew into a temporary table."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final, TypeAlias

from sqlalchemy import Column, Connection, MetaData, Table
from sqlalchemy.schema import CreateTable, DropTable

from datapatterns.cqrs.definition import Projection, TableProjection
from datapatterns.cqrs.running.paging import PageOfEvents, read_page
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.set_definition import SetProjection
from datapatterns.cqrs.tables.folding import Step
from datapatterns.cqrs.tables.kept_poison import KeptPoison
from datapatterns.cqrs.tables.leaving_out import LeftOut
from datapatterns.cqrs.tables.poison import (
    Folding,
    apply_beside_parked,
    apply_what_can_be,
)
from datapatterns.cqrs.tables.projecting import (
    UnappliableError,
    describe_stop,
    find_poison,
)
from datapatterns.cqrs.tables.read_model import ReadModels, read_models_of
from datapatterns.cqrs.tables.sampling import Sample
from datapatterns.cqrs.tables.set_reading import RangeReader
from datapatterns.cqrs.tables.set_replaying import SetReplay
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import reading, resuming

_IDENTIFIER_BYTES_MAX: Final = 63


@dataclass(slots=True)
class Replay:
    """A temporary table that holds the read model as of ``position``; of one connection.

    Page by page in transactions of their own, so it holds back neither vacuum nor anybody else.

    Attributes:
        left_out: What the read model does not show and this need not either.
        sample: Which keys; all unless given.
        kept: Where to keep what cannot be applied; unless given, that raises.
    """

    store: EventStore
    projection: type[Projection]
    models: ReadModels
    page_events: int
    position: Position = START
    segment: Segment = WHOLE
    mark: Position | None = None
    left_out: LeftOut | None = None
    sample: Sample | None = None
    kept: KeptPoison | None = None

    def page(self, conn: Connection, *, until: Position | None = None) -> ProjectionProgress:
        """Fold the next page in the caller's transaction, up to ``until`` if that is given.

        Raises:
            UnappliableError: An event cannot be applied; `diagnose` says which.
        """
        page = self._read(conn, until)
        if self.kept is not None and self.kept.rows:
            dealt = apply_beside_parked(conn, self._folding, page, self.kept.rows.intersection)
            self.kept.add(dealt)
        else:
            self._apply(conn, page.events)
        self.position = page.checkpoint
        return ProjectionProgress(len(page.events), page.checkpoint, page.caught_up)

    def page_in_parts(
        self, conn: Connection, kept: KeptPoison, *, until: Position | None = None
    ) -> ProjectionProgress:
        """Fold the next page without what cannot be applied, which goes to ``kept``.

        Raises:
            ProjectionStoppedError: An event concerns nobody knows which rows.
        """
        known = kept.rows.intersection if kept.rows else None
        page = self._read(conn, until)
        dealt = apply_what_can_be(conn, self._folding, page, after=self.position, known=known)
        if dealt.stopped is not None:
            raise dealt.stopped from dealt.stopped.__cause__
        kept.add(dealt)
        self.position = dealt.position
        return ProjectionProgress(dealt.events, dealt.position, dealt.caught_up)

    def diagnose(self, conn: Connection) -> Exception | None:
        """Return the error that names the event at which `page` fails."""
        page = self._read(conn, None)
        length, error = find_poison(conn, page.events, lambda events: self._apply(conn, events))
        if error is None:
            return None
        return describe_stop(self.projection, page.events[length], error)[1]

    def _read(self, conn: Connection, until: Position | None) -> PageOfEvents:
        page = read_page(
            conn,
            self.store,
            self.projection,
            self.position,
            self.page_events,
            until=until,
            mark=self.mark,
        )
        self.mark = page.mark
        return page

    def _apply(self, conn: Connection, events: Sequence[RecordedEvent]) -> None:
        if self.left_out:
            events = self.left_out.events(events)
        if events:
            self._folding.apply(conn, events, self._takes)

    @property
    def _takes(self) -> Callable[[Step], bool] | None:
        sample, takes = self.sample, self.left_out.takes if self.left_out else None
        if sample is None:
            return takes
        return lambda step: sample.takes(step.key) and (takes is None or takes(step))

    @property
    def _folding(self) -> Folding:
        # A replay sends nothing: whatever follows from these events has followed.
        return Folding(self.store, self.projection, self.models, self.segment, sends=False)


AnyReplay: TypeAlias = Replay | SetReplay
"""A replay of either kind of projection into tables."""


@contextmanager
def replayed(
    conn: Connection,
    store: EventStore,
    projection: type[TableProjection],
    *,
    page_events: int,
    prefix: str = "replay",
) -> Iterator[AnyReplay]:
    """Give an empty replay; its table goes at the end, or with the connection.

    Two on one connection need different prefixes for the names of their tables.
    """
    models = _replay_models(projection, prefix)
    this = f"a replay of projection {projection.name}"
    with resuming(conn, this):
        for model in models.values():
            conn.execute(CreateTable(model.table))
    try:
        yield _replay(store, projection, models, page_events)
    finally:
        if not conn.invalidated:
            with resuming(conn, this):
                for model in models.values():
                    conn.execute(DropTable(model.table))


def advance_replay(
    conn: Connection,
    replay: AnyReplay,
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
    this = f"a replay of projection {replay.projection.name}"
    while True:
        before = replay.position
        try:
            with resuming(conn, this):
                done = replay.page(conn, until=until)
                in_page(conn)
        except UnappliableError:
            replay.position = before
            if replay.kept is None:
                with reading(conn):
                    stopped = replay.diagnose(conn)
                if stopped is None:
                    raise
                raise stopped from stopped.__cause__
            with resuming(conn, this):
                done = replay.page_in_parts(conn, replay.kept, until=until)
                in_page(conn)
        on_page(done)
        if done.caught_up:
            return done


def _replay(
    store: EventStore, projection: type[TableProjection], models: ReadModels, page_events: int
) -> AnyReplay:
    if issubclass(projection, SetProjection):
        return SetReplay(RangeReader(store, projection, page_events), models)
    assert issubclass(projection, Projection)
    return Replay(store, projection, models, page_events)


@cache
def _replay_models(projection: type[TableProjection], prefix: str) -> ReadModels:
    replayed = {}
    for number, (into, model) in enumerate(read_models_of(projection).items()):
        name = f"{prefix}{number}_of_{projection.name}"[:_IDENTIFIER_BYTES_MAX]
        columns = [
            Column(c.name, c.type, primary_key=c.primary_key, autoincrement=False)
            for c in model.columns
        ]
        table = Table(name, MetaData(), *columns, schema="pg_temp", prefixes=["TEMPORARY"])
        replayed[into] = model.in_table(table)
    return MappingProxyType(replayed)
