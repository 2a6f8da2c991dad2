"""A view that is kept by counting: what is stored, shown and applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    CTE,
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
from datapatterns.materialized_view.counting_plan import CountingPlan, OutputKind, Shape
from datapatterns.materialized_view.identified import columns_compared_as_text
from datapatterns.materialized_view.identity import imaged
from datapatterns.materialized_view.maintenance import Applied, Logs
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.pending_changes import pending_changes
from datapatterns.materialized_view.relations import definition_of, stored_of
from datapatterns.materialized_view.showing import shown_rows
from datapatterns.materialized_view.sources import own_source, table_of
from datapatterns.materialized_view.strategy import Explanation, Strategy
from datapatterns.materialized_view.within import Anew

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

    def places(self) -> dict[str, int]:
        """Return which key each column of the view shows, if it shows one."""
        pairs = zip(self.columns, self.plan.outputs, strict=True)
        return {name: shown.index for name, shown in pairs if shown.kind is OutputKind.KEY}

    def places_of(self, table: Table) -> dict[str, int]:
        """Return which keys are columns of ``table``; none if it is read more than once.

        Nor if rows of several queries are counted together: these may have another type there.
        """
        branch = self.plan.branches[0]
        read = [source for source in branch.sources if table_of(source) is table]
        if len(self.plan.branches) > 1 or len(read) != 1:
            return {}
        return {
            key.name: number
            for number, key in enumerate(branch.keys)
            if isinstance(key, Column) and own_source(key, read) is not None
        }

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

    def apply(
        self, conn: Connection, logs: Logs, since: Snapshot, anew: Anew | None = None
    ) -> Applied:
        """Add what ``since`` does not show.

        Raises:
            ViewDiffersError: A key would have fewer rows than none.
        """
        if anew is None:
            statement = self._application(logs)
        else:
            as_text = columns_compared_as_text(conn, self.names, self)
            pending = self._pending(logs)
            statement = application(
                self.plan, self.names, pending, anew=anew, compared_as_text=as_text
            )
        found = conn.execute(statement, snapshot_parameters(since)).one()
        if found.negative:
            raise ViewDiffersError(self.names.view)
        changed = found.touched if anew is None else found.touched + found.deleted + found.inserted
        # A truncation names no rows.
        return Applied(found.snapshot, found.pending, changed, not found.truncated)

    def _application(self, logs: Logs) -> Select[Any]:
        """Return the statement, which takes longer to put together than to apply a few rows."""
        named = tuple(logs.by_table[table] for table in self.tables)
        if named not in self._applications:
            self._applications[named] = application(self.plan, self.names, self._pending(logs))
        return self._applications[named]

    def _pending(self, logs: Logs) -> dict[Table, CTE]:
        return pending_changes(self, logs.by_table, self.names.schema, not_shown_by_parameters)
