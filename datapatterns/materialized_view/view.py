"""The view that an application declares next to its tables."""

from typing import Any, TypedDict, Unpack

from sqlalchemy import ColumnElement, Connection, Engine, TableClause, column, table
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from datapatterns.change_log import ChangeToken
from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.materialized_view.algebra import Query
from datapatterns.materialized_view.creating import create_view, drop_view
from datapatterns.materialized_view.definition import ViewDefinition, define_view
from datapatterns.materialized_view.freshness import read_freshness
from datapatterns.materialized_view.names import view_names
from datapatterns.materialized_view.part import WhichRows, part_of
from datapatterns.materialized_view.policy import RefreshPolicy, Schedule
from datapatterns.materialized_view.records import read_record
from datapatterns.materialized_view.refreshing import rebuild_view, refresh_view
from datapatterns.materialized_view.reports import Difference, Freshness, RefreshReport
from datapatterns.materialized_view.strategy import AUTO, Explanation, Maintain
from datapatterns.materialized_view.verifying import verify_view
from datapatterns.materialized_view.versions import version_at_hand
from datapatterns.materialized_view.waiting import Awaited, wait_for
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema

PENDING_ROWS_MAX = 100_000
"""How far `MaterializedView.freshness` counts in each log unless told otherwise."""

DIFFERENCES_MAX = 100
"""How many rows `MaterializedView.verify` returns unless told otherwise."""


class WhenToRefresh(TypedDict, total=False):
    """When workers refresh a view; only on demand unless one of the first two is given.

    Attributes:
        max_staleness_seconds: For so long, at most, may a committed change be missing.
        schedule: ``Every(seconds)`` or ``Daily(at)``, whether or not it is needed.
        timeout_seconds: After so long a statement of a refresh is given up.
    """

    max_staleness_seconds: float | None
    schedule: Schedule | None
    timeout_seconds: float | None


class MaterializedView:
    """The stored result of a query, kept exactly as its tables were at the last refresh.

    Writers of the tables log their changed rows and wait for nobody; readers of the view wait
    for nobody either. The view and all that belongs to it live in the library's schema.

    Attributes:
        name: What the view is called in the database; 1 to 40 of a-z, 0-9 and _.
        schema: Where it lives.
        table: The view as something to select from; see also ``c``.
        realtime: The same as of now: what is stored with what is pending, in the reader's own
            snapshot and so with its own writes. Its price grows with what is pending.
        policy: When workers refresh it.
    """

    def __init__(
        self,
        name: str,
        query: Query,
        *,
        schema: str = DEFAULT_SCHEMA,
        maintain: Maintain = AUTO,
        **when: Unpack[WhenToRefresh],
    ) -> None:
        """Declare a view of ``query``; nothing happens in any database.

        Args:
            name: What to call it.
            query: Of plain tables, with nothing in it that depends on anything else. Columns
                that have no name are given one by ``label()``.
            schema: Where the library's tables live.
            maintain: ``Auto()``, or ``Incremental()`` to refuse what cannot be counted, or
                ``Full()`` to rebuild in any case.
            when: When workers refresh it, see `WhenToRefresh`; on demand only unless given.

        Raises:
            ValueError: A time is not positive, or more than a year.
            ViewDefinitionError: The query cannot be kept, or not in the way that was asked for.
        """
        self._definition = define_view(view_names(checked_schema(schema), name), query, maintain)
        types = [element.type for element in query.selected_columns]
        pairs = [*zip(self._definition.columns, types, strict=True)]
        self.name = name
        self.schema = schema
        self.policy = RefreshPolicy(**when)
        self.table: TableClause = table(name, *(column(*pair) for pair in pairs), schema=schema)
        self.realtime: TableClause = table(
            self._definition.names.realtime, *(column(*pair) for pair in pairs), schema=schema
        )

    def __repr__(self) -> str:
        """Return the view's name and how it is kept."""
        return f"<MaterializedView {self.schema}.{self.name}, {self.explain()}>"

    @property
    def definition(self) -> ViewDefinition:
        """What the view shows and how it will be kept, for other modules of this package."""
        return self._definition

    @property
    def c(self) -> ReadOnlyColumnCollection[str, Any]:
        """The view's columns, for ``select(view.c.week)``."""
        return self.table.c

    def explain(self, conn: Connection | None = None) -> Explanation:
        """Return how the view is kept and why.

        Without a connection that is what follows from the query alone. With one it is what was
        decided when the view was created, which also knows the columns' real types.

        Raises:
            ViewChangedError: The view was created from another query.
            ViewMissingError: The view was not created.
        """
        if conn is None:
            return self._definition.explanation
        return read_record(conn, version_at_hand(conn, self._definition)).explanation

    def create(self, conn: Connection) -> None:
        """Create the view, empty, and capture changes of its tables from now on.

        For a migration, or wherever tables are created. Waits for running writers of the tables,
        unless they are captured already. Populate the view after this has been committed.

        Raises:
            CaptureRefusedError: Changes of one of the tables would be missed.
            ViewChangedError: The view exists, with another query.
            ViewDefinitionError: The server says why the query cannot be kept.
        """
        create_view(conn, self._definition)

    def populate(self, conn: Connection, *, clock: Clock = SYSTEM_CLOCK) -> RefreshReport:
        """Fill the view, in a later transaction than the one that created it.

        Only then has everybody whose changes the filling statement does not see logged them.
        Nobody has to wait for it.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
            TransactionInUseError: The transaction has written something, such as the view.
            ViewChangedError: The view was created from another query.
            ViewMissingError: The view was not created.
        """
        return rebuild_view(conn, self._definition, clock=clock)

    def rebuild(
        self,
        conn: Connection,
        *,
        where: ColumnElement[bool] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> RefreshReport:
        """Make the view right whatever it holds, writing only the rows that differ.

        Args:
            conn: A connection in a transaction that has written nothing. The caller commits.
            where: Only the rows for which this holds, such as ``view.c.week == 7``; the others
                are refreshed. It is a condition on columns that the query groups by, or on any if
                it does not group; and the query runs with it. What is pending may ask for more.
            clock: Measures how long it takes.

        Raises:
            TypeError: There is a query or a function in the condition.
            ValueError: It is about columns that do not tell one part from another.
            ViewDiffersError: Outside the part, the view counts fewer rows than none.
            ViewNotPopulatedError: A part is wanted, and the view has not been filled yet.
            Exception: The errors of `populate` as well.
        """
        return rebuild_view(conn, self._definition, clock=clock, where=where)

    def refresh(
        self, conn: Connection, *, skip_locked: bool = False, clock: Clock = SYSTEM_CLOCK
    ) -> RefreshReport | None:
        """Take in all changes that have been committed.

        Args:
            conn: A connection in a transaction that has written nothing. The caller commits.
            skip_locked: Return None if somebody else is refreshing the view, instead of waiting.
            clock: Measures how long it takes.

        Raises:
            ForeignSnapshotError: The view was last refreshed in another database.
            ViewDiffersError: The view counts fewer rows than none; it has missed something.
            ViewNotPopulatedError: The view has not been filled yet.
            Exception: The errors of `populate` as well.
        """
        return refresh_view(conn, self._definition, skip_locked=skip_locked, clock=clock)

    def freshness(self, conn: Connection, *, limit: int = PENDING_ROWS_MAX) -> Freshness:
        """Return how far the view is behind what the transaction sees.

        Args:
            conn: A connection in a transaction.
            limit: How far to count the pending changes of each table.

        Raises:
            ForeignSnapshotError: The view was last refreshed in another database.
            ViewChangedError: The view was created from another query.
            ViewMissingError: The view was not created.
        """
        return read_freshness(conn, self._definition, limit=limit)

    def wait(
        self,
        engine: Engine,
        token: ChangeToken,
        *,
        timeout_seconds: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Return as soon as the view contains the write that `change_token` named.

        Somebody else has to refresh it. No connection is held meanwhile.

        Raises:
            ValueError: The token comes from another cluster.
            ViewBehindError: The view does not contain it after ``timeout_seconds``.
            ViewMissingError: The view was not created.
        """
        wait_for(engine, Awaited(self._definition, token, timeout_seconds, clock))

    def verify(
        self, conn: Connection, *, limit: int = DIFFERENCES_MAX, **rows: Unpack[WhichRows]
    ) -> list[Difference]:
        """Return the rows, at most ``limit``, that the view gets wrong with what is pending.

        One statement compares what `realtime` shows with what the query gives, so it is exact
        whatever others write or refresh meanwhile, and keeps nobody waiting. Values are compared
        as SQL compares them.

        Args:
            conn: A connection in a transaction.
            limit: How many rows to return at most.
            rows: Which rows are compared, see `WhichRows`; all unless given.

        Raises:
            ForeignSnapshotError: The view was last refreshed in another database.
            SnapshotOutdatedError: A table was truncated after the transaction's snapshot, above
                READ COMMITTED; begin again.
            TypeError: There is a query in the condition.
            ValueError: A sample, seed or condition cannot be used.
            ViewChangedError: The view was created from another query.
            ViewMissingError: The view was not created.
            ViewNotPopulatedError: The view has not been filled yet.
            ViewSampleError: A sample is wanted of a view whose keys have no hash.
        """
        part = part_of(self._definition.query, self._definition.columns, **rows)
        return [*verify_view(conn, self._definition, part, limit=limit).differences]

    def drop(self, conn: Connection) -> None:
        """Drop the view, and stop capturing what nobody else consumes; do nothing without it.

        Raises:
            ViewInUseError: Other views are built upon it.
        """
        drop_view(conn, self._definition.names)
