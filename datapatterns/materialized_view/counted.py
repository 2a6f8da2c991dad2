"""A view that is kept by counting: what is stored, shown and applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Label,
    Select,
    Table,
    TableClause,
    case,
    delete,
    func,
    not_,
    select,
    union_all,
)

from datapatterns.change_log import Snapshot, not_shown_by
from datapatterns.change_log.inspecting import table_name
from datapatterns.errors import ViewDiffersError
from datapatterns.materialized_view import counting
from datapatterns.materialized_view.algebra import CountingPlan, Output, OutputKind, table_of
from datapatterns.materialized_view.blueprint import Need, Requirement
from datapatterns.materialized_view.key_hashes import key_hash
from datapatterns.materialized_view.maintenance import Applied, Logs
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.pending_changes import pending_changes
from datapatterns.materialized_view.relations import definition_of, stored_of
from datapatterns.materialized_view.strategy import Explanation, Strategy

_EXPLANATION = Explanation(
    Strategy.COUNTING, "inner joins, plain conditions, counts and exact sums by column"
)


@dataclass(frozen=True, slots=True)
class Counted:
    """Groups, each with a count of its rows and the totals of its measures.

    Attributes:
        names: The view's.
        columns: What it shows, by name.
        plan: What is counted.
    """

    names: ViewNames
    columns: Sequence[str]
    plan: CountingPlan

    @property
    def explanation(self) -> Explanation:
        """How the view is kept, and why."""
        return _EXPLANATION

    @property
    def stored(self) -> list[str]:
        """The columns of the stored table."""
        return [*self.key, *counting.total_names(self.plan)]

    @property
    def key(self) -> list[str]:
        """What tells groups apart."""
        return counting.key_names(self.plan)

    @property
    def key_is_unique(self) -> bool:
        """There is one row for each group."""
        return True

    @property
    def requirements(self) -> list[Requirement]:
        """Exact sums, and keys that a unique index and a hash tell apart."""
        return [*self._of_times(), *self._of_keys(), *self._of_measures()]

    @property
    def tables(self) -> list[Table]:
        """Each table of the query once."""
        return self.plan.tables

    def columns_of(self, table: Table) -> list[Column[Any]]:
        """Return the columns of ``table`` that matter."""
        return self.plan.columns_of(table)

    def fresh(self) -> Select[Any]:
        """Return the query for all groups, from scratch."""
        return counting.state(self.plan)

    def shown(self) -> Select[Any]:
        """Return the query of the stored table for what the view shows."""
        stored = self._stored()
        return select(*self._shown(stored)).select_from(stored)

    def current(self, pending: Mapping[Table, FromClause], marker: FromClause) -> Select[Any]:
        """Return what is stored with what is pending added.

        Only the groups that pending changes touch are added up anew; all others are shown as
        they are stored.
        """
        says_enough = not_(select(marker.c.seen).scalar_subquery())
        stored, delta = self._stored(), counting.delta(self.plan, pending)
        touched = select(key_hash([delta.c[name] for name in self.key]))
        own_hash = key_hash([stored.c[name] for name in self.key])
        untouched = select(*self._shown(stored)).where(says_enough, own_hash.not_in(touched))
        both = union_all(
            select(*stored.c).where(says_enough, own_hash.in_(touched)),
            select(*delta.c).where(says_enough),
        ).subquery("both")
        keys = [both.c[name] for name in self.key]
        totals = [func.sum(both.c[name]).label(name) for name in counting.total_names(self.plan)]
        added_up = select(*keys, *totals).group_by(*keys).subquery("added_up")
        again = select(*self._shown(added_up))
        if self.plan.keys:
            again = again.where(added_up.c[counting.ROWS] != 0)
        definition = definition_of(self.names, self.columns)
        anew = select(*definition.c).where(select(marker.c.seen).scalar_subquery())
        return select(*union_all(untouched, again, anew).subquery("current").c)

    def apply(self, conn: Connection, logs: Logs, since: Snapshot) -> Applied:
        """Add what ``since`` does not show.

        Raises:
            ViewDiffersError: A group would hold fewer rows than none.
        """
        pending = pending_changes(
            self, logs.by_table, self.names.schema, lambda xid: not_shown_by(since, xid)
        )
        stored = self._stored()
        found = conn.execute(counting.application(self.plan, stored, pending)).one()
        if found.negative:
            raise ViewDiffersError(self.names.view)
        # A truncation names no rows; and nothing can be subtracted from NaN or infinity.
        is_done = not (found.truncated or found.unsubtractable)
        # Without GROUP BY there is one group, which shows even if it is empty.
        if is_done and found.emptied and self.plan.keys:
            conn.execute(delete(stored).where(stored.c[counting.ROWS] == 0))
        return Applied(found.snapshot, found.pending, found.touched, is_done)

    def _stored(self) -> TableClause:
        return stored_of(self.names, self.stored)

    def _shown(self, groups: FromClause) -> list[Label[Any]]:
        return [
            self._value(output, groups).label(name)
            for output, name in zip(self.plan.outputs, self.columns, strict=True)
        ]

    def _value(self, output: Output, groups: FromClause) -> ColumnElement[Any]:
        if output.kind is OutputKind.KEY:
            return groups.c[self.key[output.index]]
        if output.kind is OutputKind.ROWS:
            return groups.c[counting.ROWS]
        rows = groups.c[f"measure_{output.index}_rows"]
        if output.kind is OutputKind.COUNT:
            return rows
        total = groups.c[f"measure_{output.index}_sum"]
        return case((rows > 0, total / rows if output.kind is OutputKind.AVG else total))

    def _of_times(self) -> list[Requirement]:
        if not self.plan.compares_local_times:
            return []
        compared = [column for table in self.tables for column in self.columns_of(table)]
        return [_required(column, Need.NO_ZONE) for column in compared]

    def _of_keys(self) -> list[Requirement]:
        needs = (Need.DISTINGUISHABLE, Need.HASHABLE)
        return [_required(key, need) for key in self.plan.keys for need in needs]

    def _of_measures(self) -> list[Requirement]:
        summed = {
            output.index
            for output in self.plan.outputs
            if output.kind in {OutputKind.SUM, OutputKind.AVG}
        }
        return [_required(self.plan.measures[index], Need.EXACT) for index in sorted(summed)]


def _required(column: Column[Any], need: Need) -> Requirement:
    return Requirement(table_name(table_of(column.table)), column.name, need)
