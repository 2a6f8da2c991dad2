"""One of several workers: refreshes views when they are due, in bounded steps."""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from threading import Lock
from typing import Final

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from datapatterns.clock import Clock
from datapatterns.errors import (
    CommitUnansweredError,
    SnapshotOutdatedError,
    ViewMissingError,
    ViewNotPopulatedError,
)
from datapatterns.materialized_view.dependencies import with_ancestors
from datapatterns.materialized_view.limits import is_busy
from datapatterns.materialized_view.pacing import BUSY_SECONDS, Rests, pause_seconds
from datapatterns.materialized_view.reports import RefreshReport
from datapatterns.materialized_view.standing import ViewStanding, read_standings
from datapatterns.materialized_view.together import Company
from datapatterns.materialized_view.view import MaterializedView
from datapatterns.telemetry import SILENT, Observer
from datapatterns.transactions import looking, resuming

logger = logging.getLogger(__name__)

_NOT_ANSWERING: Final = ("08", "53", "57P")
"""SQLSTATEs of a connection that broke, a server that is full, and one that shuts down."""


@dataclass(frozen=True, slots=True)
class ViewWorkDone:
    """What one step of a worker has done.

    Attributes:
        reports: What was done to which view.
        pause_seconds: When to step again; 0 if there may be more to do.
    """

    reports: Mapping[str, RefreshReport]
    pause_seconds: float


@dataclass(slots=True, eq=False)
class ViewWorker:
    """Refreshes views when they are due; any number of them share the work.

    Who comes second to a view leaves it alone. Several threads may use one.

    Attributes:
        companies: What is refreshed, in order, each in one snapshot.
        parents: What views are built upon.
        schema: Where they live.
        clock: What rests and durations go by; when a view is due the database says.
        populates: Whether views are filled, too, that are not filled.
        observer: Is told of refreshes, their durations and failures.
        draw: Returns numbers from 0 to 1 at random.
    """

    companies: Sequence[Company]
    parents: Mapping[str, Sequence[str]]
    schema: str
    clock: Clock
    populates: bool = False
    observer: Observer = SILENT
    draw: Callable[[], float] = random.random
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)
    _taken: set[Company] = field(default_factory=set, init=False, repr=False)
    _rests: Rests = field(default_factory=Rests, init=False, repr=False)
    _troubles: dict[str, Exception] = field(default_factory=dict, init=False, repr=False)
    _refreshes: int = field(default=0, init=False, repr=False)
    _at_work: set[Connection] = field(default_factory=set, init=False, repr=False)

    @property
    def refreshes(self) -> int:
        """How many times a view was refreshed or filled."""
        return self._refreshes

    @property
    def troubles(self) -> Mapping[str, Exception]:
        """Why views are not refreshed by this worker now, by their names."""
        return dict(self._troubles)

    def step(self, engine: Engine) -> ViewWorkDone:
        """Refresh what is most overdue, if anything is due.

        Raises:
            DBAPIError: The database does not answer; step again after a while.
        """
        names = [name for company in self.companies for name in company.names]
        with self._connection(engine) as conn, looking(conn):
            standings = read_standings(conn, names, schema=self.schema)
        chosen, left = self._choose(standings)
        if chosen is None:
            return ViewWorkDone({}, pause_seconds(left, self.draw()))
        try:
            return ViewWorkDone(self._take(engine, chosen, standings), 0.0)
        finally:
            self._taken.discard(chosen)

    def interrupt(self) -> None:
        """Cancel what is under way, in whatever thread; what it has done is undone."""
        for conn in [*self._at_work]:
            try:
                driver = conn.connection.driver_connection
                driver.cancel()  # type: ignore[union-attr] # psycopg's
            except Exception as error:  # it has ended by itself
                logger.debug("a statement was not cancelled", exc_info=error)

    def _choose(self, standings: Mapping[str, ViewStanding]) -> tuple[Company | None, float]:
        """Take what is most overdue, or return in how many seconds something is due."""
        with self._lock:
            now, soonest, chosen = self.clock.monotonic(), inf, None
            for company in self.companies:
                left = self._seconds_left(company, standings)
                rest = max(self._rests.seconds_left(name, now=now) for name in company.names)
                if company in self._taken or rest > 0:
                    left = max(left, rest, BUSY_SECONDS)
                # The first of several: those that others are built upon.
                if left < soonest:
                    soonest, chosen = left, company
            if chosen is None or soonest > 0:
                return None, soonest
            self._taken.add(chosen)
            return chosen, soonest

    def _seconds_left(self, company: Company, standings: Mapping[str, ViewStanding]) -> float:
        left = inf
        for view in company.views:
            standing = standings.get(view.name)
            if standing is None or not standing.populated:
                return self._seconds_to_fill(view, standing, standings)
            if isinstance(self._troubles.get(view.name), ViewMissingError | ViewNotPopulatedError):
                del self._troubles[view.name]
            left = min(left, standing.seconds_left(view.policy))
        return left

    def _seconds_to_fill(
        self,
        view: MaterializedView,
        standing: ViewStanding | None,
        standings: Mapping[str, ViewStanding],
    ) -> float:
        if standing is not None and self.populates:
            on = [standings.get(parent) for parent in self.parents[view.name]]
            return -inf if all(one is not None and one.populated for one in on) else inf
        if not view.policy.on_demand:
            trouble = ViewMissingError if standing is None else ViewNotPopulatedError
            self._troubles[view.name] = trouble(view.name)
        return inf

    def _take(
        self, engine: Engine, company: Company, standings: Mapping[str, ViewStanding]
    ) -> dict[str, RefreshReport]:
        """Do what is due; a failure becomes a rest, unless it is the database's."""
        try:
            if all(standings[name].populated for name in company.names):
                done, complete = self._refresh(engine, company)
            else:
                done, complete = self._populate(engine, company)
        except Exception as error:
            if is_lost(error):
                raise
            self._fail(company, error)
            return {}
        with self._lock:
            self._refreshes += len(done)
            for name in company.names:
                self._troubles.pop(name, None)
                self._rests.end(name)
                if not complete:
                    self._rests.leave(name, self.clock.monotonic() + BUSY_SECONDS)
        for name, report in done.items():
            self.observer.count("datapatterns.view.refreshed", view=name)
            self.observer.duration("datapatterns.view.refresh", report.duration_seconds, view=name)
        return done

    def _refresh(self, engine: Engine, company: Company) -> tuple[dict[str, RefreshReport], bool]:
        """Refresh what the views are built upon, then these; tell whether nobody was at it."""
        above = with_ancestors(company.names, self.parents).difference(company.names)
        reports: dict[str, RefreshReport] = {}
        complete = True
        for parent in self.companies:
            if above.intersection(parent.names):
                found = self._refresh_one(engine, parent)
                complete = complete and found is not None
                reports |= found or {}
        done = self._refresh_one(engine, company)
        # Left incomplete, it is as stale as before, and would be looked at again at once.
        return reports | (done or {}), complete and done is not None

    def _refresh_one(self, engine: Engine, company: Company) -> dict[str, RefreshReport] | None:
        try:
            with self._transaction(engine, company) as conn:
                return company.refresh_in(conn, skip_locked=True)
        except SnapshotOutdatedError:
            return None
        except OperationalError as error:
            if is_busy(error):
                return None
            raise

    def _populate(self, engine: Engine, company: Company) -> tuple[dict[str, RefreshReport], bool]:
        reports: dict[str, RefreshReport] = {}
        for view in company.views:
            with (
                self._connection(engine) as conn,
                resuming(conn, f"filling view {view.name}"),
            ):
                # Whoever came second would wait, and then fill it once more.
                key = func.hashtextextended(f"{self.schema}.{view.name} is populated", 0)
                if not conn.scalar(select(func.pg_try_advisory_xact_lock(key))):
                    return reports, False
                now = read_standings(conn, [view.name], schema=self.schema).get(view.name)
                if now is not None and not now.populated:
                    reports[view.name] = view.populate(conn, clock=self.clock)
        return reports, True

    @contextmanager
    def _transaction(self, engine: Engine, company: Company) -> Iterator[Connection]:
        with (
            self._connection(engine, company.isolation_level) as conn,
            resuming(conn, f"refreshing view {', '.join(company.names)}"),
        ):
            yield conn

    @contextmanager
    def _connection(
        self, engine: Engine, isolation_level: str = "READ COMMITTED"
    ) -> Iterator[Connection]:
        with engine.connect() as conn:
            conn.execution_options(isolation_level=isolation_level)
            self._at_work.add(conn)
            try:
                yield conn
            finally:
                self._at_work.discard(conn)

    def _fail(self, company: Company, error: Exception) -> None:
        with self._lock:
            now, rest = self.clock.monotonic(), 0.0
            for name in company.names:
                self._troubles[name] = error
                rest = self._rests.begin(name, now=now, draw=self.draw())
                self.observer.count("datapatterns.view.failed", view=name)
        reason = next(iter(str(getattr(error, "orig", None) or error).splitlines()), "")
        known = {"view": ", ".join(company.names), "rest_seconds": round(rest, 3)}
        known["reason"] = f"{type(error).__name__}: {reason}"
        logger.warning("a view is not refreshed", extra=known)


def is_lost(error: Exception) -> bool:
    """Return whether the database does not answer, which is no view's fault."""
    if isinstance(error, CommitUnansweredError | PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or state is None:
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return bool(state.startswith(_NOT_ANSWERING))
