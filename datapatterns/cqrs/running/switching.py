"""Switch a projection between runners that follow the log and appends that keep it inline.

It is done in one transaction while nobody appends, so what comes before it in the log was kept in
one way, and what comes after it in the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import OperationalError

from datapatterns.clock import Clock
from datapatterns.cqrs.running.ended_writers import last_position, wait_until_final
from datapatterns.cqrs.running.leasing import release, take_over
from datapatterns.cqrs.running.modes import read_mode, set_mode, settle_at
from datapatterns.cqrs.running.runners import LeaseTerms
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.inline_locks import mode_lock
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.cqrs.tables.targets import lock_writers_out
from datapatterns.errors import ProjectionModeError, WritersInTheWayError
from datapatterns.event_sourcing.events import Position
from datapatterns.failpoints import failpoint
from datapatterns.transactions import fresh_reads, resuming

LOCK_SECONDS: Final = 0.3
"""For so long appends may stand in line behind a switch that waits for one of them."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Changes how one projection is kept."""

    runner: TableRunner
    terms: LeaseTerms
    clock: Clock

    def to_inline(self, engine: Engine, *, timeout_seconds: float) -> None:
        """Do what `Projections.make_inline` promises, for a read model that is nearly caught up."""
        self._repeat(engine, self._make_inline, timeout_seconds)

    def to_async(self, engine: Engine, *, timeout_seconds: float) -> None:
        """Do what `Projections.make_async` promises."""
        self._repeat(engine, self._make_async, timeout_seconds)

    def _make_inline(self, conn: Connection) -> None:
        if self._mode_under_lock(conn) == "inline":
            return
        set_mode(conn, self._schema, self.runner.projection, "inline")
        failpoint("projection.mode-set")
        # A page of a runner may be under way; it holds rows before it asks for its lease.
        for model in read_models_of(self.runner.projection).values():
            lock_writers_out(conn, model.table)
        self._wait_for_fences(conn)
        owner, seconds = self.terms.owner, self.terms.seconds
        for lease in take_over(
            conn,
            self._tables,
            self.runner.projection,
            owner=owner,
            seconds=seconds,
            all_versions=False,
        ):
            if lease.parked:  # later events of their keys would overtake them
                raise ProjectionModeError(
                    self.runner.projection.name,
                    mode="async",
                    advice="retry its parked events first, or give them up",
                )
            latest, caught_up = lease, False
            while not caught_up:
                latest, done = self.runner.page_within(conn, latest)
                caught_up = done.caught_up
            if latest.parked:  # a writer could not tell which rows wait
                raise ProjectionModeError(
                    self.runner.projection.name,
                    mode="async",
                    advice="retry or discard its parked events before",
                )
            release(conn, self._tables, latest)

    def _make_async(self, conn: Connection) -> None:
        if self._mode_under_lock(conn) == "async":
            return
        projection = self.runner.projection
        set_mode(conn, self._schema, projection, "async")
        failpoint("projection.mode-set")
        settle_at(conn, self._tables, projection, self._wait_for_fences(conn))

    def _wait_for_fences(self, conn: Connection) -> Position:
        """Return the end of the log, which is final, as nobody can append."""
        store = self.runner.store
        wait_until_final(
            conn,
            store,
            last_position(conn, self._schema),
            waits_for=self.runner.projection.name,
            seconds=LOCK_SECONDS,
            clock=self.clock,
        )
        return store.high_water_mark(conn)

    def _mode_under_lock(self, conn: Connection) -> str:
        projection = self.runner.projection
        lock = mode_lock(self._schema, projection.name)
        conn.execute(select(func.pg_advisory_xact_lock(lock)))
        mode = read_mode(conn, self._tables, projection)
        if mode is None:
            raise ProjectionModeError(
                projection.name,
                mode="by another version, or not at all",
                advice=f"promote version {projection.version} first",
            )
        return mode

    def _repeat(
        self, engine: Engine, switch: Callable[[Connection], None], timeout_seconds: float
    ) -> None:
        name = self.runner.projection.name
        deadline = self.clock.monotonic() + timeout_seconds
        limit = f"{round(LOCK_SECONDS * 1_000)}ms"
        with fresh_reads(engine) as conn:
            while True:
                try:
                    with resuming(conn, f"the switch of projection {name}"):
                        conn.execute(select(func.set_config("lock_timeout", limit, True)))
                        switch(conn)
                except (OperationalError, WritersInTheWayError) as error:
                    if isinstance(error, OperationalError) and not isinstance(
                        error.orig, LockNotAvailable | DeadlockDetected
                    ):
                        raise
                    if self.clock.monotonic() >= deadline:
                        raise WritersInTheWayError(name, seconds=timeout_seconds) from error
                    # Those who stood in line go by meanwhile.
                    self.clock.sleep(LOCK_SECONDS)
                else:
                    return

    @property
    def _schema(self) -> str:
        return self.runner.store.schema

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self._schema)
