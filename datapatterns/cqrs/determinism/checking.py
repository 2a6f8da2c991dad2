"""Fold the whole log more than once, page by page, and say where that made a difference."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlalchemy import Connection, Engine

from datapatterns.cqrs.definition import AnyProjection, Projection, RedisProjection
from datapatterns.cqrs.determinism.other_process import OtherProcess, other_process
from datapatterns.cqrs.determinism.redis_trials import RedisTrials
from datapatterns.cqrs.determinism.reports import Determinism, Unsteady
from datapatterns.cqrs.determinism.table_trials import TableTrials
from datapatterns.cqrs.running.paging import PageOfEvents, read_page
from datapatterns.cqrs.running.parking import WHOLE_EVENT, left_out
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.set_definition import SetProjection
from datapatterns.cqrs.tables.differences import Difference, find_differences
from datapatterns.cqrs.tables.leaving_out import read_left_out
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.cqrs.tables.replaying import advance_replay, replayed
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import fresh_reads, looking, reading, resuming

_SMALLER: Final = 3
"""By how much the pages are smaller in which statements are run the second time."""

_IN_SQL: Final = "statements run in the database"

Page: TypeAlias = Callable[[Connection, PageOfEvents], Unsteady | None]


@dataclass(frozen=True, slots=True)
class DeterminismCheck:
    """Checks one projection.

    Attributes:
        elsewhere: Whether to fold in another process, too.
        on_page: Called after each page of the log.
    """

    store: EventStore
    projection: type[AnyProjection]
    page_events: int
    elsewhere: bool
    on_page: Callable[[ProjectionProgress], None]

    def run(self, engine: Engine) -> Determinism:
        """Do what `Projections.check_determinism` promises."""
        projection = self.projection
        with fresh_reads(engine) as conn, ExitStack() as stack:
            with looking(conn):
                until = self.store.high_water_mark(conn)
            if issubclass(projection, SetProjection):
                return self._of_statements(conn, projection, until)
            other = None
            if self.elsewhere:
                other = stack.enter_context(other_process(projection, self.store.types))
            if issubclass(projection, RedisProjection):
                return self._in_redis(conn, projection, other, until)
            assert issubclass(projection, Projection)
            return self._in_tables(conn, projection, other, until)

    def _in_tables(
        self,
        conn: Connection,
        projection: type[Projection],
        other: OtherProcess | None,
        until: Position,
    ) -> Determinism:
        with replayed(conn, self.store, projection, page_events=self.page_events) as replay:
            with reading(conn):
                left = read_left_out(conn, projection_tables(self.store.schema), projection)
            trials = TableTrials(self.store, projection, replay.models, left, other)

            def fold(conn: Connection, page: PageOfEvents) -> Unsteady | None:
                return trials.page(conn, page.events)

            return self._report(trials, *self._pages(conn, fold, until))

    def _in_redis(
        self,
        conn: Connection,
        projection: type[RedisProjection],
        other: OtherProcess | None,
        until: Position,
    ) -> Determinism:
        trials = RedisTrials(self.store, projection, other)
        tables = projection_tables(self.store.schema)

        def fold(conn: Connection, page: PageOfEvents) -> Unsteady | None:
            _, skipped = left_out(conn, tables, projection.name, projection.version)
            events = [one for one in page.events if (one.position, WHOLE_EVENT) not in skipped]
            return trials.page(events)

        return self._report(trials, *self._pages(conn, fold, until))

    def _pages(
        self, conn: Connection, fold: Page, until: Position
    ) -> tuple[Position, int, Unsteady | None]:
        position, events, mark = START, 0, None
        while position < until:
            with resuming(conn, f"a check of projection {self.projection.name}"):
                page = read_page(
                    conn,
                    self.store,
                    self.projection,
                    position,
                    self.page_events,
                    until=until,
                    mark=mark,
                )
                unsteady = fold(conn, page)
            if unsteady is not None:
                return unsteady.position or position, events, unsteady
            position, mark = page.checkpoint, page.mark
            events += len(page.events)
            self.on_page(ProjectionProgress(len(page.events), position, page.caught_up))
        return position, events, None

    def _report(
        self,
        trials: TableTrials | RedisTrials,
        position: Position,
        events: int,
        unsteady: Unsteady | None,
    ) -> Determinism:
        untried = trials.untried if self.elsewhere else "nobody asked for it"
        return Determinism(position, events, unsteady, tuple(trials.impure), untried)

    def _of_statements(
        self, conn: Connection, projection: type[SetProjection], until: Position
    ) -> Determinism:
        smaller = max(1, self.page_events // _SMALLER)
        events = 0

        def count(done: ProjectionProgress) -> None:
            nonlocal events
            events += done.events
            self.on_page(done)

        with (
            replayed(conn, self.store, projection, page_events=self.page_events) as once,
            replayed(conn, self.store, projection, page_events=smaller, prefix="again") as again,
        ):
            with reading(conn):
                left = read_left_out(conn, projection_tables(self.store.schema), projection)
            once.left_out = again.left_out = left
            advance_replay(conn, once, until=until, on_page=count)
            advance_replay(conn, again, until=until)
            with reading(conn):
                for table, model in once.models.items():
                    name = read_models_of(projection)[table].table.name
                    for one in find_differences(
                        conn, model, again.models[table], limit=1, table=name
                    ):
                        return Determinism(until, events, _of_statement(one), untried=_IN_SQL)
        return Determinism(until, events, untried=_IN_SQL)


def _of_statement(found: Difference) -> Unsteady:
    return Unsteady("in smaller pages", found.key, found.stored, found.expected, table=found.table)
