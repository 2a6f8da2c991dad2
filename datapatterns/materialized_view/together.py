"""Refresh views in a transaction of their own: one alone, or those that must show one moment."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from psycopg.errors import SerializationFailure
from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import OperationalError

from datapatterns.change_log import Consumer
from datapatterns.change_log.consuming import hold_consumers
from datapatterns.change_log.inspecting import locking_order
from datapatterns.clock import Clock
from datapatterns.errors import (
    ConsumerMissingError,
    SnapshotOutdatedError,
    ViewMissingError,
)
from datapatterns.materialized_view.limits import Limits, is_busy, limited
from datapatterns.materialized_view.locking import hold_stored
from datapatterns.materialized_view.records import read_record
from datapatterns.materialized_view.refreshing import bring_up_to_date
from datapatterns.materialized_view.reports import RefreshReport
from datapatterns.materialized_view.stacking import noting_parents, parents_of
from datapatterns.materialized_view.verifying import hold_sources, require_unchanged
from datapatterns.materialized_view.view import MaterializedView
from datapatterns.transactions import resuming

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

LOCK_SECONDS: Final = 0.2
"""For so long is a lock waited for by whoever would rather refresh something else."""

_ATTEMPTS_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class Company:
    """Views that are refreshed in one snapshot.

    Attributes:
        views: In order; mostly one alone.
        clock: What durations go by.
        timeout_seconds: For a statement, of a view that is declared without a time of its own.
    """

    views: tuple[MaterializedView, ...]
    clock: Clock
    timeout_seconds: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called."""
        return tuple(view.name for view in self.views)

    @property
    def isolation_level(self) -> str:
        """What a transaction needs to refresh them."""
        return "READ COMMITTED" if len(self.views) == 1 else "REPEATABLE READ"

    def refresh(self, engine: Engine, *, skip_locked: bool) -> dict[str, RefreshReport] | None:
        """Take in all changes that have been committed, and commit.

        Returns:
            None if ``skip_locked`` and somebody else is at it.

        Raises:
            CommitUnansweredError: The connection broke during a COMMIT; do it again.
            SnapshotOutdatedError: A table was truncated, or one of several views refreshed, at
                each of several attempts.
            ViewTimeoutError: A statement took too long.
            Exception: The errors of `MaterializedView.refresh`.
        """
        for attempt in range(1, _ATTEMPTS_MAX + 1):
            try:
                with (
                    engine.connect() as conn,
                    resuming(
                        conn.execution_options(isolation_level=self.isolation_level),
                        f"refreshing view {', '.join(self.names)}",
                    ),
                ):
                    return self.refresh_in(conn, skip_locked=skip_locked)
            except SnapshotOutdatedError:
                if attempt == _ATTEMPTS_MAX:
                    raise
            except OperationalError as error:
                if skip_locked and is_busy(error):
                    return None
                raise
        raise AssertionError("the last attempt returns or raises")

    async def refresh_async(
        self, engine: "AsyncEngine", *, skip_locked: bool
    ) -> dict[str, RefreshReport] | None:
        """Do as `refresh` does, in a task.

        Raises:
            OutcomeUnknownError: The connection broke during a COMMIT; do it again.
            Exception: The other errors of `refresh`.
        """
        from datapatterns.aio import in_transaction  # noqa: PLC0415 -- needs an extra

        leveled = engine.execution_options(isolation_level=self.isolation_level)
        for attempt in range(1, _ATTEMPTS_MAX + 1):
            try:
                return await in_transaction(leveled, self.refresh_in, skip_locked=skip_locked)
            except SnapshotOutdatedError:
                if attempt == _ATTEMPTS_MAX:
                    raise
            except OperationalError as error:
                if skip_locked and is_busy(error):
                    return None
                raise
        raise AssertionError("the last attempt returns or raises")

    def refresh_in(self, conn: Connection, *, skip_locked: bool) -> dict[str, RefreshReport] | None:
        """Do as `refresh` does, but for the transaction, which has not done anything yet.

        Args:
            conn: A connection in a transaction of `isolation_level`. The caller commits.
            skip_locked: Return None if somebody else is at it.
        """
        if len(self.views) == 1:
            (view,) = self.views
            with self._limited(conn, view, skip_locked=skip_locked):
                report = view.refresh(conn, skip_locked=skip_locked, clock=self.clock)
            return None if report is None else {view.name: report}
        with _one_snapshot(", ".join(self.names)):
            return self._refresh_together(conn, skip_locked=skip_locked)

    def _refresh_together(
        self, conn: Connection, *, skip_locked: bool
    ) -> dict[str, RefreshReport] | None:
        """Bring all of them up to the one snapshot of the transaction."""
        with self._limited(conn, self.views[0], skip_locked=skip_locked):
            held = self._hold(conn, skip_locked=skip_locked)
        if held is None:
            return None
        done: dict[str, RefreshReport] = {}
        for view in self.views:
            # What one of them writes, none of the others reads: they are on one level.
            work = partial(
                bring_up_to_date,
                conn,
                view.definition,
                held[view.definition.names.consumer],
                clock=self.clock,
            )
            with self._limited(conn, view, skip_locked=skip_locked):
                names = view.definition.names
                parents = conn.execute(select(parents_of(names))).scalar_one()
                done[view.name] = noting_parents(conn, names, parents, work)
        # Statements were planned for the partitions of then: who attaches one waits for no reader.
        require_unchanged(conn, self._sources(conn))
        return done

    def _hold(self, conn: Connection, *, skip_locked: bool) -> dict[str, Consumer] | None:
        """Take the locks of all, and then the snapshot."""
        # Before there is a snapshot: it would miss what is committed while we wait.
        for view in sorted(self.views, key=lambda view: view.name):
            hold_stored(conn, view.definition.names)
        hold_sources(conn, self._sources(conn))
        names = {view.definition.names.consumer: view.name for view in self.views}
        schema = self.views[0].schema
        try:
            return hold_consumers(conn, names, schema=schema, skip_locked=skip_locked)
        except ConsumerMissingError as error:
            raise ViewMissingError(names[error.name]) from error

    def _sources(self, conn: Connection) -> list[str]:
        read = {t for view in self.views for t in read_record(conn, view.definition).logs}
        return sorted(read, key=locking_order)

    def _limited(
        self, conn: Connection, view: MaterializedView, *, skip_locked: bool
    ) -> AbstractContextManager[None]:
        limits = Limits(
            view.policy.timeout_seconds or self.timeout_seconds,
            LOCK_SECONDS if skip_locked else None,
        )
        return limited(conn, view.name, limits, self.clock)


@contextmanager
def _one_snapshot(views: str) -> Iterator[None]:
    """Tell what it means that something has moved on since the snapshot was taken.

    Raises:
        SnapshotOutdatedError: One of the views was refreshed by somebody else; begin again.
    """
    try:
        yield
    except OperationalError as error:
        if isinstance(error.orig, SerializationFailure):
            raise SnapshotOutdatedError(views) from error
        raise
