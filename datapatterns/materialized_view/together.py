"""Refresh views in a transaction of their own: one alone, or those that must show one moment."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from datapatterns.clock import Clock
from datapatterns.materialized_view.limits import Limits, is_busy, limited
from datapatterns.materialized_view.reports import RefreshReport
from datapatterns.materialized_view.view import MaterializedView
from datapatterns.transactions import fresh_reads, resuming

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

LOCK_SECONDS: Final = 0.2
"""For so long is a lock waited for by whoever would rather refresh something else."""


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

    def refresh(self, engine: Engine, *, skip_locked: bool) -> dict[str, RefreshReport] | None:
        """Take in all changes that have been committed, and commit.

        Returns:
            None if ``skip_locked`` and somebody else is at it.

        Raises:
            CommitUnansweredError: The connection broke during a COMMIT; do it again.
            ViewTimeoutError: A statement took too long.
            Exception: The errors of `MaterializedView.refresh`.
        """
        try:
            with (
                fresh_reads(engine) as conn,
                resuming(conn, f"refreshing view {', '.join(self.names)}"),
            ):
                return self.refresh_in(conn, skip_locked=skip_locked)
        except OperationalError as error:
            if skip_locked and is_busy(error):
                return None
            raise

    async def refresh_async(
        self, engine: "AsyncEngine", *, skip_locked: bool
    ) -> dict[str, RefreshReport] | None:
        """Do as `refresh` does, in a task.

        Raises:
            OutcomeUnknownError: The connection broke during a COMMIT; do it again.
            Exception: The other errors of `refresh`.
        """
        from datapatterns.aio import in_transaction  # noqa: PLC0415 -- needs an extra

        fresh = engine.execution_options(isolation_level="READ COMMITTED")
        try:
            return await in_transaction(fresh, self.refresh_in, skip_locked=skip_locked)
        except OperationalError as error:
            if skip_locked and is_busy(error):
                return None
            raise

    def refresh_in(self, conn: Connection, *, skip_locked: bool) -> dict[str, RefreshReport] | None:
        """Do as `refresh` does, but for the transaction, which has not done anything yet."""
        (view,) = self.views
        limits = Limits(
            view.policy.timeout_seconds or self.timeout_seconds,
            LOCK_SECONDS if skip_locked else None,
        )
        with limited(conn, view.name, limits, self.clock):
            report = view.refresh(conn, skip_locked=skip_locked, clock=self.clock)
        return None if report is None else {view.name: report}
