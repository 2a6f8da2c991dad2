"""What every strategy has to say of how stored rows follow the tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Column, Connection, FromClause, Select, Table

from datapatterns.change_log import Snapshot
from datapatterns.materialized_view.blueprint import Requirement
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.strategy import Explanation
from datapatterns.materialized_view.within import Anew


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying pending changes came to.

    Attributes:
        snapshot: That of the statement which read them.
        pending_rows: How many changes were pending.
        rows_changed: How many stored rows were written or deleted.
        is_done: False if the changes do not say enough, as after a TRUNCATE; then nothing has
            been changed that a rebuild would not put right.
    """

    snapshot: Snapshot
    pending_rows: int
    rows_changed: int
    is_done: bool


@dataclass(frozen=True, slots=True)
class Logs:
    """Where changes of a view's tables are logged.

    Attributes:
        by_table: The log of each table whose changes are applied one by one.
        names: Those of all tables that the query reads.
    """

    by_table: Mapping[Table, str]
    names: Sequence[str]


class Maintenance(Protocol):
    """What is stored for a view, and what is shown of it."""

    @property
    def explanation(self) -> Explanation:
        """How the view is kept, and why."""

    @property
    def stored(self) -> Sequence[str]:
        """The columns of the stored table."""

    @property
    def key(self) -> Sequence[str]:
        """Those by which stored rows are found; none for no index."""

    @property
    def key_is_unique(self) -> bool:
        """Whether there is one stored row for each key."""

    @property
    def identified(self) -> Sequence[str]:
        """Which stored columns have to be the same as the query's, not only equal to them."""

    @property
    def requirements(self) -> Sequence[Requirement]:
        """What must be true in the database."""

    @property
    def tables(self) -> Sequence[Table]:
        """The tables whose changes are applied one by one; none if they only cause a rebuild."""

    def columns_of(self, table: Table) -> Sequence[Column[Any]]:
        """Return the columns of ``table`` that are read from its changes."""

    def places(self) -> Mapping[str, int]:
        """Return which key each column of the view shows: its number among those of `Within`."""

    def places_of(self, table: Table) -> Mapping[str, int]:
        """Return which keys are columns of ``table``, by their names.

        The view's rows that a row of the table is in have its values there, all of them. None if
        that cannot be told, as of a table that is joined twice.
        """

    def under(self, names: ViewNames) -> "Maintenance":
        """Return the same for a version of the view with other names."""

    def fresh(self) -> Select[Any]:
        """Return the query for all that should be stored, its columns named ``stored``."""

    def shown(self) -> Select[Any]:
        """Return the query of the stored table for what the view shows."""

    def current(self, pending: Mapping[Table, FromClause], marker: FromClause) -> Select[Any]:
        """Return the query for what the tables give now.

        Args:
            pending: The pending changes of each table: ``change_sign`` and ``columns_of`` it.
            marker: One row: ``seen``, whether these do not say enough.
        """

    def apply(
        self, conn: Connection, logs: Logs, since: Snapshot, anew: Anew | None = None
    ) -> Applied:
        """Apply what ``since`` does not show, in one statement, or say that it cannot be done.

        Args:
            conn: A connection whose transaction holds the consumer.
            logs: Where changes are.
            since: Up to where changes have been applied.
            anew: A part of the view that is computed from scratch instead, whatever it holds.

        Raises:
            ViewDiffersError: The stored rows cannot have been right.
        """
