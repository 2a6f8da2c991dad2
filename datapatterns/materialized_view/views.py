"""The views of one schema, each after those that it is built upon."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, Unpack

from sqlalchemy import ColumnElement, Connection, Engine

from datapatterns.change_log import ChangeToken
from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import ViewUndeclaredError
from datapatterns.materialized_view.building_upon import Parents, parents_of
from datapatterns.materialized_view.dependencies import companies, in_order, with_ancestors
from datapatterns.materialized_view.part import WhichRows, part_of
from datapatterns.materialized_view.reports import RefreshReport, ViewStatus, ViewVerification
from datapatterns.materialized_view.standing import read_standings
from datapatterns.materialized_view.statuses import read_status
from datapatterns.materialized_view.together import Company
from datapatterns.materialized_view.verifying import verify_view
from datapatterns.materialized_view.versions import version_at_hand
from datapatterns.materialized_view.view import (
    DIFFERENCES_MAX,
    PENDING_ROWS_MAX,
    MaterializedView,
)
from datapatterns.materialized_view.waiting import Awaited, wait_for, wait_for_async
from datapatterns.materialized_view.working import ViewWorker
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.telemetry import SILENT, Observer
from datapatterns.transactions import fresh_reads, resuming

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

Reports: TypeAlias = dict[str, RefreshReport]
"""What was done, by the view's name, in the order in which it was done."""

OnView: TypeAlias = Callable[[str, RefreshReport], object]
"""Is told what was done to the view of that name."""


def _tell_nobody(_name: str, _report: RefreshReport) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Views:
    """What an application keeps views of, in an order in which they can be created and refreshed.

    A view whose query reads another one's ``table`` is built upon it. Operations that take an
    engine open a transaction for each view, since none may read what it has just written.

    Attributes:
        declared: The views.
        schema: Where all of them live.
        clock: What waiting and durations go by.

    Raises:
        ViewCycleError: Some are built upon each other in a circle.
        ViewUndeclaredError: Two have one name, or one lives in another schema.
    """

    declared: Sequence[MaterializedView] = ()
    schema: str = DEFAULT_SCHEMA
    clock: Clock = field(default=SYSTEM_CLOCK, repr=False)
    _by_name: dict[str, MaterializedView] = field(init=False, repr=False)
    _parents: Parents = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known: dict[str, MaterializedView] = {}
        for view in self.declared:
            if known.setdefault(view.name, view) is not view:
                raise ViewUndeclaredError(view.name, "two are declared; give one another name")
            if view.schema != self.schema:
                raise ViewUndeclaredError(
                    view.name,
                    f"it is declared in schema {view.schema!r}, where the tables of this layer"
                    f" are not; write schema={self.schema!r}",
                )
        parents = parents_of(known.values())
        object.__setattr__(self, "_parents", parents)
        object.__setattr__(self, "_by_name", {name: known[name] for name in in_order(parents)})

    @property
    def ordered(self) -> tuple[MaterializedView, ...]:
        """All views, each after those that it is built upon."""
        return tuple(self._by_name.values())

    def find(self, name: str) -> MaterializedView:
        """Return the view that is declared under ``name``.

        Raises:
            ViewUndeclaredError: None is.
        """
        if (view := self._by_name.get(name)) is None:
            names = ", ".join(sorted(self._by_name)) or "none is"
            raise ViewUndeclaredError(name, f"it is not declared; those that are: {names}")
        return view

    def declares(self, name: str) -> bool:
        """Return whether a view is declared under ``name``."""
        return name in self._by_name

    def parents(self, view: MaterializedView) -> tuple[str, ...]:
        """Return the names of the views that ``view`` is built upon directly."""
        return self._parents[self.find(view.name).name]

    def with_ancestors(self, only: Sequence[str] = ()) -> list[str]:
        """Return the names of those that are named, and of what they are built upon, in order.

        Raises:
            ViewUndeclaredError: One is not declared.
        """
        wanted = [self.find(name).name for name in only or self._by_name]
        found = with_ancestors(wanted, self._parents)
        return [name for name in self._by_name if name in found]

    def create(self, conn: Connection) -> None:
        """Create those that are not there yet, empty; see `MaterializedView.create`."""
        for view in self.ordered:
            view.create(conn)

    def drop(self, conn: Connection) -> None:
        """Drop all of them."""
        for view in reversed(self.ordered):
            view.drop(conn)

    def populate(
        self, engine: Engine, only: Sequence[str] = (), *, on_view: OnView = _tell_nobody
    ) -> Reports:
        """Fill those that are not filled yet, after what they are built upon.

        Args:
            engine: Where they are.
            only: Names, if not all are meant.
            on_view: Called after each, with its name and what was done.

        Raises: as `MaterializedView.populate`, at the first that cannot be filled.
        """
        names = set(self.with_ancestors(only))
        with engine.connect() as conn:
            standings = read_standings(conn, names, schema=self.schema)
            upcoming = self._upcoming(conn, names)
        filled = {name for name, standing in standings.items() if standing.populated} - upcoming
        return self._rebuilt(engine, names - filled, on_view)

    def rebuild(
        self,
        engine: Engine,
        only: Sequence[str] = (),
        *,
        where: ColumnElement[bool] | None = None,
        on_view: OnView = _tell_nobody,
    ) -> Reports:
        """Make them right whatever they hold: all, or those that are named and no others.

        Args:
            engine: Where they are.
            only: Names, if not all are meant.
            where: Only the rows for which this holds, of each; see `MaterializedView.rebuild`.
            on_view: Called after each, with its name and what was done.

        Raises: as `MaterializedView.rebuild`, at the first that cannot be rebuilt.
        """
        names = {self.find(n).name for n in only or self._by_name}
        return self._rebuilt(engine, names, on_view, where)

    def refresh(
        self,
        engine: Engine,
        only: Sequence[str] = (),
        *,
        skip_locked: bool = False,
        on_view: OnView = _tell_nobody,
    ) -> Reports:
        """Take in all changes that have been committed, level by level.

        Args:
            engine: Where they are.
            only: Names, if not all are meant; what they are built upon is refreshed before them.
            skip_locked: Leave out what somebody else is refreshing, instead of waiting.
            on_view: Called after each, with its name and what was done.

        Raises:
            CommitUnansweredError: The connection broke during a COMMIT; do it again.
            ViewTimeoutError: It took longer than was declared.
            Exception: The errors of `MaterializedView.refresh`, at the first that has one.
        """
        done: Reports = {}
        for company in self._wanted(only):
            reports = company.refresh(engine, skip_locked=skip_locked) or {}
            done |= reports
            for name, report in reports.items():
                on_view(name, report)
        return done

    async def refresh_async(
        self, engine: "AsyncEngine", only: Sequence[str] = (), *, skip_locked: bool = False
    ) -> Reports:
        """Do as `refresh` does, in a task."""
        done: Reports = {}
        for company in self._wanted(only):
            done |= await company.refresh_async(engine, skip_locked=skip_locked) or {}
        return done

    def status(self, conn: Connection, *, limit: int = PENDING_ROWS_MAX) -> list[ViewStatus]:
        """Return how each view stands, also one that was not created or has been changed.

        Args:
            conn: A connection in a transaction.
            limit: How far to count the pending changes of each table.
        """
        return [
            read_status(conn, view, self._parents[view.name], limit=limit) for view in self.ordered
        ]

    def verify(
        self,
        engine: Engine,
        view: MaterializedView,
        *,
        limit: int = DIFFERENCES_MAX,
        **rows: Unpack[WhichRows],
    ) -> ViewVerification:
        """Compare a view as of now with its query, all of it or a part; see `WhichRows`.

        Raises:
            TypeError: There is a query in the condition.
            ValueError: A sample, seed or condition cannot be used.
            Exception: The errors of `MaterializedView.verify`.
        """
        definition = self.find(view.name).definition
        part = part_of(definition.query, definition.columns, **rows)
        with engine.connect() as conn, resuming(conn, f"verifying view {view.name}"):
            return verify_view(conn, definition, part, limit=limit)

    def wait(
        self,
        engine: Engine,
        view: MaterializedView,
        token: ChangeToken,
        *,
        timeout_seconds: float,
        refresh: bool = False,
    ) -> None:
        """Return as soon as ``view`` contains the write that ``token`` names.

        Args:
            engine: Where it is.
            view: One of those that are declared.
            token: From `change_token`.
            timeout_seconds: How long to wait at most.
            refresh: Refresh it meanwhile, unless somebody else does so.

        Raises:
            ValueError: The token comes from another cluster.
            ViewBehindError: It does not contain it in time.
            Exception: The errors of `refresh`, if it is asked for.
        """

        def help_along() -> None:
            if refresh:
                self.refresh(engine, [view.name], skip_locked=True)

        awaited = Awaited(self.find(view.name).definition, token, timeout_seconds, self.clock)
        wait_for(engine, awaited, help_along=help_along)

    async def wait_async(
        self,
        engine: "AsyncEngine",
        view: MaterializedView,
        token: ChangeToken,
        *,
        timeout_seconds: float,
        refresh: bool = False,
    ) -> None:
        """Do as `wait` does, in a task."""

        async def help_along() -> None:
            if refresh:
                await self.refresh_async(engine, [view.name], skip_locked=True)

        awaited = Awaited(self.find(view.name).definition, token, timeout_seconds, self.clock)
        await wait_for_async(engine, awaited, help_along=help_along)

    def worker(
        self,
        only: Sequence[str] = (),
        *,
        populate: bool = False,
        timeout_seconds: float | None = None,
        observer: Observer = SILENT,
    ) -> ViewWorker:
        """Return what refreshes views when they are due; any number of processes may `step` one.

        Args:
            only: Names, if not all are meant.
            populate: Fill those, too, that are not filled.
            timeout_seconds: After so long a statement of a refresh is given up, unless the view
                is declared with a time of its own.
            observer: Is told of refreshes and failures.
        """
        return ViewWorker(
            self._wanted(only, timeout_seconds),
            self._parents,
            self.schema,
            self.clock,
            populates=populate,
            observer=observer,
        )

    def _upcoming(self, conn: Connection, names: Iterable[str]) -> set[str]:
        """Return those of which another version is meant than readers see, and is not filled."""
        meant = {name: version_at_hand(conn, self._by_name[name].definition) for name in names}
        others = {v.names.view: name for name, v in meant.items() if v.names.view != name}
        standings = read_standings(conn, others, schema=self.schema)
        return {others[name] for name, standing in standings.items() if not standing.populated}

    def _wanted(
        self, only: Sequence[str], timeout_seconds: float | None = None
    ) -> tuple[Company, ...]:
        """Return those that are meant in order, with what they are built upon."""
        names = set(self.with_ancestors(only))
        return tuple(
            Company(tuple(self._by_name[name] for name in company), self.clock, timeout_seconds)
            for company in companies(self._parents)
            if names.intersection(company)
        )

    def _rebuilt(
        self,
        engine: Engine,
        names: Iterable[str],
        on_view: OnView,
        where: ColumnElement[bool] | None = None,
    ) -> Reports:
        done: Reports = {}
        wanted = set(names)
        for view in self.ordered:
            if view.name in wanted:
                with fresh_reads(engine) as conn, resuming(conn, f"rebuilding view {view.name}"):
                    done[view.name] = view.rebuild(conn, where=where, clock=self.clock)
                on_view(view.name, done[view.name])
        return done
