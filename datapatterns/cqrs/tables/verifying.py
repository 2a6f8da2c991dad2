"""Compare read models in tables with what the log says, as of the same position.

The log is folded into temporary tables while runners go on. A snapshot then says how far the
stored rows are, and the fold goes on to there. The server makes checksums of both; only where
they differ are rows copied beside the fold and compared one by one. No runner waits for any of
it; appends that keep a read model inline wait while a snapshot is taken.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import ProgrammingError

from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.cqrs.definition import AnyProjection, TableProjection
from datapatterns.cqrs.running.ended_writers import last_position, wait_until_final
from datapatterns.cqrs.running.leasing import read_live_version
from datapatterns.cqrs.running.modes import read_mode
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.comparing import Comparison
from datapatterns.cqrs.tables.differences import (
    Verification,
    count_rows,
)
from datapatterns.cqrs.tables.inline_locks import mode_lock
from datapatterns.cqrs.tables.leaving_out import LeftOut, read_left_out
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.cqrs.tables.replaying import AnyReplay, Replay, advance_replay, replayed
from datapatterns.cqrs.tables.sampling import EVERYTHING, Sample, Wanted
from datapatterns.cqrs.tables.stored_rows import (
    one_snapshot,
    suspected,
)
from datapatterns.cqrs.tables.versions import read_models_for
from datapatterns.errors import (
    DataPatternsError,
    ProjectionDefinitionError,
    ProjectionVersionError,
    ReadModelBuildingError,
    ReadModelMovedError,
)
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import fresh_reads, reading

FENCE_SECONDS: Final = 60.0
"""For so long verify waits for a transaction that could have appended before what it compares."""

_UNDEFINED_TABLE: Final = "42P01"

_WHOLE_STATES: Final = ("ready", "live", "standby")
"""In which states a version has all of its rows."""


class Sight(NamedTuple):
    """What a snapshot sees of a read model.

    Attributes:
        segments: How far each is.
        left_out: What its rows do not show.
    """

    conn: Connection
    segments: dict[Segment, Position]
    left_out: LeftOut


@dataclass(frozen=True, slots=True)
class TableVerifier:
    """Compares one read model in tables with the log.

    Attributes:
        wanted: How much of it.
        limit: How many differences to return at most.
        on_page: Called after each page of the log.
    """

    store: EventStore
    projection: type[TableProjection]
    page_events: int
    limit: int
    wanted: Wanted = EVERYTHING
    on_page: Callable[[ProjectionProgress], None] = lambda _: None

    def run(self, engine: Engine) -> Verification:
        """Do what `Projections.verify` promises for a table.

        Raises:
            ProjectionDefinitionError: A sample is asked for, but nobody knows the keys.
            ProjectionVersionError: The tables are not those of this version.
            ReadModelBuildingError: They are not whole.
            ReadModelMovedError: They became others meanwhile.
            WritersInTheWayError: A transaction that may have appended stayed open.
        """
        status: str | None = None
        try:
            with fresh_reads(engine) as conn:
                with reading(conn):
                    status, position = self._standing(conn)
                return self._verify(engine, conn, status, position)
        except ProgrammingError as error:
            if status is None or getattr(error.orig, "sqlstate", None) != _UNDEFINED_TABLE:
                raise
            # Tables of other states have other names.
            with fresh_reads(engine) as conn, reading(conn):
                self._refuse_another(self._status(conn), status)
            raise

    def _verify(
        self, engine: Engine, conn: Connection, status: str, position: Position
    ) -> Verification:
        with reading(conn):
            models = read_models_for(self.projection, status)
            sample = self._sample(conn, models)
            left_out = self._left_out(conn)
        with (
            replayed(conn, self.store, self.projection, page_events=self.page_events) as replay,
            suspected(conn, models) as suspects,
        ):
            replay.left_out = left_out
            if isinstance(replay, Replay):
                replay.sample = sample
            # Most of it before the snapshot, which holds vacuum back.
            advance_replay(conn, replay, until=position, on_page=self.on_page)
            with self._seen(engine, conn, status, models) as sight:
                self._follow(conn, replay, sight)
                return Comparison(models, replay, suspects, self.limit, sample).run(
                    conn, sight.conn
                )

    def _standing(self, conn: Connection) -> tuple[str, Position]:
        status, segments = self._status(conn), self._segments(conn)
        if status not in _WHOLE_STATES or not segments:
            raise _not_whole(conn, self.store, self.projection)
        if read_mode(conn, self._tables, self.projection) == "inline":
            # Its checkpoint has stayed where it was switched.
            return status, self.store.high_water_mark(conn)
        return status, min(segments.values())

    def _sample(self, conn: Connection, models: ReadModels) -> Sample | None:
        if self.wanted.amount is None:
            return None
        if not self.projection.handlers:
            raise ProjectionDefinitionError(
                self.projection.name,
                "its statements run over all keys, so a sample would cost as much as the whole;"
                " verify all of it",
            )
        counted = isinstance(self.wanted.amount, int)
        rows = sum(count_rows(conn, model) for model in models.values()) if counted else 0
        return self.wanted.of(rows)

    @contextmanager
    def _seen(
        self, engine: Engine, conn: Connection, status: str, models: ReadModels
    ) -> Iterator[Sight]:
        with one_snapshot(engine, models) as seen:
            mark = self._mark_of_appends(conn, seen)
            now = self._status(seen)
            if now not in _WHOLE_STATES:
                raise _not_whole(seen, self.store, self.projection)
            self._refuse_another(now, status)
            if (read_mode(seen, self._tables, self.projection) == "inline") != (mark is not None):
                raise ReadModelMovedError(
                    self.projection.name, "began to be kept in another way while it was verified"
                )
            segments = self._segments(seen) if mark is None else {WHOLE: mark}
            yield Sight(seen, segments, self._left_out(seen))

    def _mark_of_appends(self, conn: Connection, seen: Connection) -> Position | None:
        """Take the snapshot; of what is kept inline while nobody appends, with the mark then."""
        with reading(conn):
            if read_mode(conn, self._tables, self.projection) != "inline":
                self._status(seen)
                return None
            # Appends under way end first; others wait until the snapshot is taken.
            lock = mode_lock(self.store.schema, self.projection.name)
            conn.execute(select(func.pg_advisory_xact_lock(lock)))
            self._status(seen)
            last = last_position(seen, self.store.schema)
            end = max(last, self.store.high_water_mark(conn))
        with reading(conn):
            wait_until_final(
                conn,
                self.store,
                last,
                waits_for=self.projection.name,
                seconds=FENCE_SECONDS,
                clock=SYSTEM_CLOCK,
            )
        return end

    def _follow(self, conn: Connection, replay: AnyReplay, sight: Sight) -> None:
        """Fold on to where the snapshot is."""
        known = replay.left_out
        replay.left_out = sight.left_out if known is None else known.and_also(sight.left_out)
        reached = min(sight.segments.values())
        if reached < replay.position:
            raise ReadModelMovedError(self.projection.name, "went back while it was verified")
        advance_replay(conn, replay, until=reached, on_page=self.on_page)
        for segment, ahead in sight.segments.items():
            if ahead > reached:
                advance_replay(conn, replace(replay, segment=segment), until=ahead)
        replay.position = max(sight.segments.values())

    def _refuse_another(self, now: str | None, status: str) -> None:
        if now != status:
            raise ReadModelMovedError(
                self.projection.name, f"was {status}, and became {now} while it was verified"
            )

    def _status(self, conn: Connection) -> str | None:
        projections = self._tables.projections.c
        return conn.scalar(
            select(projections.status).where(
                projections.name == self.projection.name,
                projections.version == self.projection.version,
            )
        )

    def _segments(self, conn: Connection) -> dict[Segment, Position]:
        shards = self._tables.shards.c
        rows = conn.execute(
            select(shards.shard, shards.mask, shards.position)
            .where(shards.name == self.projection.name, shards.version == self.projection.version)
            .order_by(shards.shard)
        )
        return {Segment(shard, mask): Position(position) for shard, mask, position in rows}

    def _left_out(self, conn: Connection) -> LeftOut:
        return read_left_out(conn, self._tables, self.projection)

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)


def _not_whole(
    conn: Connection, store: EventStore, projection: type[AnyProjection]
) -> DataPatternsError:
    live = read_live_version(conn, projection_tables(store.schema), projection)
    if live is None:
        return ReadModelBuildingError(projection.name, position=None)
    return ProjectionVersionError(projection.name, declared=projection.version, live=live)
