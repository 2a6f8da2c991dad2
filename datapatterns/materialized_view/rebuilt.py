"""A view that is kept by rebuilding: its rows are stored as the query gives them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Table,
    and_,
    not_,
    select,
    union_all,
)

from datapatterns.change_log import Snapshot, current_snapshot, not_shown_by
from datapatterns.materialized_view.blueprint import Requirement
from datapatterns.materialized_view.identified import columns_compared_as_text
from datapatterns.materialized_view.maintenance import Applied, Logs
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.pending_changes import count_pending
from datapatterns.materialized_view.rebuilding import rebuild
from datapatterns.materialized_view.relations import definition_of, stored_of
from datapatterns.materialized_view.strategy import Explanation
from datapatterns.materialized_view.within import Anew


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The rows of the query, as a multiset; any change of its tables may change all of them.

    Attributes:
        names: The view's.
        columns: What it shows, by name.
        explanation: Why nothing better keeps it.
    """

    names: ViewNames
    columns: Sequence[str]
    explanation: Explanation

    @property
    def stored(self) -> list[str]:
        """The columns of the stored table."""
        return [f"column_{number}" for number in range(len(self.columns))]

    @property
    def key(self) -> list[str]:
        """No row is looked for."""
        return []

    @property
    def key_is_unique(self) -> bool:
        """There are no keys."""
        return False

    @property
    def identified(self) -> list[str]:
        """All columns."""
        return self.stored

    @property
    def requirements(self) -> list[Requirement]:
        """Whatever the types are, rows are compared."""
        return []

    @property
    def tables(self) -> list[Table]:
        """No changes are applied one by one."""
        return []

    def columns_of(self, table: Table) -> list[Column[Any]]:  # noqa: ARG002 -- of none
        """Return nothing."""
        return []

    def places(self) -> dict[str, int]:
        """Return the number of each column of the view: any of them may tell a part of it."""
        return {name: number for number, name in enumerate(self.columns)}

    def places_of(self, table: Table) -> dict[str, int]:  # noqa: ARG002 -- of none
        """Return nothing: nobody knows which rows a row of the table is in."""
        return {}

    def under(self, names: ViewNames) -> "Rebuilt":
        """Return the same for a version of the view with other names."""
        return replace(self, names=names)

    def fresh(self) -> Select[Any]:
        """Return the query's rows.

        By the plain view of it, which follows what is renamed.
        """
        return self._fresh_of(definition_of(self.names, self.columns))

    def shown(self) -> Select[Any]:
        """Return what is stored."""
        stored = stored_of(self.names, self.stored)
        pairs = zip(self.stored, self.columns, strict=True)
        return select(*(stored.c[own].label(shown) for own, shown in pairs))

    def current(
        self,
        pending: Mapping[Table, FromClause],  # noqa: ARG002 -- its marker says all
        marker: FromClause,
    ) -> Select[Any]:
        """Return what is stored while nothing is pending, and run the query otherwise."""
        seen = select(marker.c.seen).scalar_subquery()
        definition = definition_of(self.names, self.columns)
        both = union_all(self.shown().where(not_(seen)), select(*definition.c).where(seen))
        return select(*both.subquery("current").c)

    def apply(
        self, conn: Connection, logs: Logs, since: Snapshot, anew: Anew | None = None
    ) -> Applied:
        """Find out whether anything is pending; then only a rebuild of all will do."""
        counted = count_pending(self.names.schema, logs.names, lambda x: not_shown_by(since, x))
        if anew is None:
            pending, snapshot = conn.execute(select(counted, current_snapshot)).one()
            return Applied(snapshot, pending, rows_changed=0, is_done=pending == 0)
        told = select(counted.label("rows")).cte("pending").prefix_with("MATERIALIZED")
        pending_rows = select(told.c.rows).scalar_subquery()
        definition = definition_of(self.names, self.columns)

        def part(rows: FromClause) -> ColumnElement[bool]:
            return and_(pending_rows == 0, anew.within([*rows.c]))

        statement = rebuild(
            self._fresh_of(definition).where(part(definition)),
            self.names,
            self.stored,
            compared_as_text=columns_compared_as_text(conn, self.names, self),
            only=lambda stored: [part(stored)],
        ).add_columns(pending_rows.label("pending"))
        found = conn.execute(statement).one()
        changed = found.deleted + found.inserted
        return Applied(found.snapshot, found.pending, changed, is_done=found.pending == 0)

    def _fresh_of(self, definition: FromClause) -> Select[Any]:
        pairs = zip(self.columns, self.stored, strict=True)
        return select(*(definition.c[shown].label(stored) for shown, stored in pairs))
