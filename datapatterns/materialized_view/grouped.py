"""A view that is kept by groups: those that changes may concern are computed anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Date,
    DateTime,
    Enum,
    FromClause,
    Integer,
    Numeric,
    Select,
    String,
    Table,
    Uuid,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

from datapatterns.change_log import Snapshot, current_snapshot, not_shown_by
from datapatterns.change_log.pending import not_shown_by_parameters, snapshot_parameters
from datapatterns.materialized_view.blueprint import Need, Requirement
from datapatterns.materialized_view.grouping.applying import apply_groups, current, shown_of
from datapatterns.materialized_view.grouping.plan import GroupPlan
from datapatterns.materialized_view.identified import columns_compared_as_text
from datapatterns.materialized_view.maintenance import Applied, Logs
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.pending_changes import count_pending, pending_changes
from datapatterns.materialized_view.relations import stored_of
from datapatterns.materialized_view.sources import table_of
from datapatterns.materialized_view.strategy import Explanation
from datapatterns.materialized_view.within import Anew

_DATA_EXCEPTION = "22"
_INDEXED_TEXT_MAX = 500
"""Characters; PostgreSQL refuses entries of an index beyond some 2,700 bytes."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """The rows of the query, found by what it groups by.

    Attributes:
        names: The view's.
        plan: The query.
        explanation: Why counting cannot keep it.
    """

    names: ViewNames
    plan: GroupPlan
    explanation: Explanation
    _applications: dict[tuple[tuple[str, ...], ...], Select[Any]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def stored(self) -> list[str]:
        """The columns of the stored table."""
        return self.plan.stored_columns

    @property
    def key(self) -> list[str]:
        """Those of the keys that fit into an index whatever their values are."""
        pairs = zip(self.plan.stored_keys, self.plan.keys, strict=True)
        return [name for name, key in pairs if _is_short(key.expression.type)]

    @property
    def key_is_unique(self) -> bool:
        """A query that does not group may show a key several times."""
        return False

    @property
    def identified(self) -> list[str]:
        """All columns."""
        return self.stored

    @property
    def requirements(self) -> list[Requirement]:
        """Keys that have a hash."""
        return [Requirement("", key, Need.HASHABLE) for key in self.plan.stored_keys]

    @property
    def tables(self) -> list[Table]:
        """Each table of the query once."""
        return self.plan.tables

    def columns_of(self, table: Table) -> list[Column[Any]]:
        """Return the columns of ``table`` that the query names."""
        return self.plan.columns_of(table)

    def places(self) -> dict[str, int]:
        """Return which key each column of the view shows, if it shows one."""
        names = self.plan.output_names
        shown = ((key.shown_by, number) for number, key in enumerate(self.plan.keys))
        return {names[output]: number for output, number in shown if output is not None}

    def places_of(self, table: Table) -> dict[str, int]:
        """Return which keys are columns of ``table``; none if it is read more than once.

        Nor if an outer join may leave it out: without its rows, others are in other groups.
        """
        plan = self.plan
        read = [n for n, source in enumerate(plan.sources) if table_of(source) is table]
        if len(read) != 1 or read[0] in plan.tree.nullable():
            return {}
        return {
            key.expression.name: number
            for number, key in enumerate(plan.keys)
            if key.occurrence == read[0] and isinstance(key.expression, Column)
        }

    def under(self, names: ViewNames) -> "Grouped":
        """Return the same for a version of the view with other names."""
        return replace(self, names=names, _applications={})  # they name the stored table

    def fresh(self) -> Select[Any]:
        """Return the query for all that is stored."""
        return self.plan.all_rows()

    def shown(self) -> Select[Any]:
        """Return the query of the stored table for what the view shows."""
        return shown_of(self.plan, stored_of(self.names, self.stored))

    def current(self, pending: Mapping[Table, FromClause], marker: FromClause) -> Select[Any]:
        """Return the groups that no change concerns as they are stored, the others anew."""
        return current(self.plan, self.names, pending, marker)

    def apply(
        self, conn: Connection, logs: Logs, since: Snapshot, anew: Anew | None = None
    ) -> Applied:
        """Compute the groups anew that what ``since`` does not show may concern."""
        statement = self._application(conn, logs, anew)
        try:
            with conn.begin_nested():
                found = conn.execute(statement, snapshot_parameters(since)).one()
        except DBAPIError as error:
            if not str(getattr(error.orig, "sqlstate", None)).startswith(_DATA_EXCEPTION):
                raise
            # Keys were asked of a changed row that the query's own conditions keep away from
            # them, such as a quotient. If the query itself fails, so will the rebuild.
            return self._not_done(conn, logs, since)
        changed = found.deleted + found.inserted
        return Applied(found.snapshot, found.pending, changed, found.done)

    def _application(self, conn: Connection, logs: Logs, anew: Anew | None) -> Select[Any]:
        """Return the statement, which takes longer to put together than to apply a few rows."""
        as_text = tuple(columns_compared_as_text(conn, self.names, self))
        if anew is not None:
            return self._applying(logs, anew, as_text)
        named = (tuple(logs.by_table[table] for table in self.tables), as_text)
        if named not in self._applications:
            self._applications[named] = self._applying(logs, None, as_text)
        return self._applications[named]

    def _applying(self, logs: Logs, anew: Anew | None, as_text: Sequence[str]) -> Select[Any]:
        pending = pending_changes(self, logs.by_table, self.names.schema, not_shown_by_parameters)
        return apply_groups(self.plan, self.names, pending, anew=anew, compared_as_text=as_text)

    def _not_done(self, conn: Connection, logs: Logs, since: Snapshot) -> Applied:
        counted = count_pending(self.names.schema, logs.names, lambda x: not_shown_by(since, x))
        pending, snapshot = conn.execute(select(counted, current_snapshot)).one()
        return Applied(snapshot, pending, rows_changed=0, is_done=False)


def _is_short(declared: TypeEngine[Any]) -> bool:
    match declared:
        case Enum() | Boolean() | Integer() | Date() | DateTime() | Uuid():
            return True
        case Numeric(precision=precision):
            return precision is not None
        case String(length=length):
            return length is not None and length <= _INDEXED_TEXT_MAX
        case _:
            return False
