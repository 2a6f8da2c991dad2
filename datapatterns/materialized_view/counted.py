"""A view that is kept by counting: what is stored, shown and applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    FromClause,
    Select,
    Table,
    not_,
    select,
    union_all,
)

from datapatterns.change_log import Snapshot
from datapatterns.change_log.pending import not_shown_by_parameters, snapshot_parameters
from datapatterns.errors import ViewDiffersError
from datapatterns.materialized_view import counting
from datapatterns.materialized_view.applying import application
from datapatterns.materialized_view.blueprint import Requirement
from datapatterns.materialized_view.counting_needs import needs_of
from datapatterns.materialized_view.counting_plan import CountingPlan, Shape
from datapatterns.materialized_view.identity import imaged
from datapatterns.materialized_view.maintenance import Applied, Logs
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.pending_changes import pending_changes
from datapatterns.materialized_view.relations import definition_of, stored_of
from datapatterns.materialized_view.showing import shown_rows
from datapatterns.materialized_view.strategy import Explanation, Strategy

_REASONS = {
    Shape.GROUPS: "inner joins, plain conditions, counts and exact sums of each group",
    Shape.DISTINCT: "inner joins and plain conditions; how often each row occurs is counted",
    Shape.ROWS: "inner joins and plain conditions; how often each row occurs is counted",
}


@dataclass(frozen=True, slots=True)
class Counted:
    """Keys, each with a count of its rows and the totals of its measures.

    Attributes:
        names: The view's.
        columns: What it shows, by name.
        plan: What is counted.
    """

    names: ViewNames
    columns: Sequence[str]
    plan: CountingPlan
    _applications: dict[tuple[str, ...], Select[Any]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def explanation(self) -> Explanation:
        """How the view is kept, and why."""
        return Explanation(Strategy.COUNTING, _REASONS[self.plan.shape])

    @property
    def stored(self) -> list[str]:
        """The columns of the stored table."""
        plan = self.plan
        return [counting.KEY_HASH, *counting.key_names(plan), *counting.total_names(plan)]

    @property
    def key(self) -> list[str]:
        """A hash of what tells rows apart."""
        return [counting.KEY_HASH]

    @property
    def key_is_unique(self) -> bool:
        """Keys may share a hash."""
        return False

    @property
    def identified(self) -> list[str]:
        """The keys whose equal values are kept apart."""
        names = counting.key_names(self.plan)
        return [names[number] for number in imaged(self.plan)]

    @property
    def requirements(self) -> list[Requirement]:
        """Exact sums, and keys that have a hash."""
        return [*needs_of(self.plan)]

    @property
    def tables(self) -> list[Table]:
        """Each table of the query once."""
        return self.plan.tables

    def columns_of(self, table: Table) -> list[Column[Any]]:
        """Return the columns of ``table`` that matter."""
        return self.plan.columns_of(table)

    def under(self, names: ViewNames) -> "Counted":
        """Return the same for a version of the view with other names."""
        return replace(self, names=names, _applications={})  # they name the stored table

    def fresh(self) -> Select[Any]:
        """Return the query for all keys, from scratch."""
        return counting.state(self.plan)

    def shown(self) -> Select[Any]:
        """Return the query of the stored table for what the view shows."""
        return shown_rows(self.plan, self.columns, stored_of(self.names, self.stored))

    def current(self, pending: Mapping[Table, FromClause], marker: FromClause) -> Select[Any]:
        """Return what is stored with what is pending added.

        Only the keys that pending changes touch are added up anew; all others are shown as they
        are stored.
        """
        says_enough = not_(select(marker.c.seen).scalar_subquery())
        stored = stored_of(self.names, self.stored)
        delta = counting.delta(self.plan, pending)
        hashes = select(delta.c[counting.KEY_HASH])
        is_touched = stored.c[counting.KEY_HASH].in_(hashes)
        both = union_all(
            select(*stored.c).where(says_enough, is_touched),
            select(*(delta.c[name] for name in self.stored)).where(says_enough),
        ).subquery("both")
        again = counting.add_up(self.plan, both).cte("added_up")
        definition = definition_of(self.names, self.columns)
        parts = (
            shown_rows(self.plan, self.columns, stored, says_enough, not_(is_touched)),
            shown_rows(self.plan, self.columns, again),
            select(*definition.c).where(select(marker.c.seen).scalar_subquery()),
        )
        return select(*union_all(*parts).subquery("current").c)

    def apply(self, conn: Connection, logs: Logs, since: Snapshot) -> Applied:
        """Add what ``since`` does not show.

        Raises:
            ViewDiffersError: A key would have fewer rows than none.
        """
        found = conn.execute(self._application(logs), snapshot_parameters(since)).one()
        if found.negative:
            raise ViewDiffersError(self.names.view)
        # A truncation names no rows.
        return Applied(found.snapshot, found.pending, found.touched, not found.truncated)

    def _application(self, logs: Logs) -> Select[Any]:
        """Return the statement, which takes longer to put together than to apply a few rows."""
        named = tuple(logs.by_table[table] for table in self.tables)
        if named not in self._applications:
            pending = pending_changes(
                self, logs.by_table, self.names.schema, not_shown_by_parameters
            )
            self._applications[named] = application(self.plan, self.names, pending)
        return self._applications[named]
