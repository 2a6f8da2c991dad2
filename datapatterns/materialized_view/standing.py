"""How far views are, read for all of them at once: what workers decide by."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from math import inf

from sqlalchemy import Connection, func, select

from datapatterns.change_log import change_log_tables
from datapatterns.change_log.schema import Instant, statement_time
from datapatterns.materialized_view.policy import RefreshPolicy
from datapatterns.materialized_view.schema import materialized_views, view_parents


@dataclass(frozen=True, slots=True)
class ViewStanding:
    """When a view was refreshed, by the clock of the database.

    Attributes:
        populated: Whether it has been filled since it was created or rebased.
        refreshed_at: When it was refreshed last; None if it never was.
        as_of: Since when changes may be missing: of a view that is built upon others, since the
            oldest of them was refreshed.
        now: When that was asked.
        duration_seconds: How long that took; 0 if it never was.
    """

    populated: bool
    refreshed_at: datetime | None
    as_of: datetime | None
    now: datetime
    duration_seconds: float

    def seconds_left(self, policy: RefreshPolicy) -> float:
        """Return in how many seconds a refresh is due; at most 0 if it is, infinity for never."""
        if policy.on_demand:
            return inf
        if self.refreshed_at is None or self.as_of is None:
            return 0.0
        return policy.seconds_left(
            self.refreshed_at, self.now, as_of=self.as_of, duration=self.duration_seconds
        )


def read_standings(
    conn: Connection, names: Iterable[str], *, schema: str
) -> dict[str, ViewStanding]:
    """Return how far the views of these names are; those are left out that were not created."""
    views, consumers = materialized_views(schema), change_log_tables(schema).consumers
    parents = view_parents(schema)
    of_parents = select(func.min(parents.c.as_of)).where(parents.c.view == views.c.name)
    found = conn.execute(
        select(
            views.c.name,
            consumers.c.populated,
            consumers.c.advanced_at,
            # LEAST leaves out what is NULL, as of a view that is built upon none.
            func.least(consumers.c.advanced_at, of_parents.scalar_subquery(), type_=Instant).label(
                "as_of"
            ),
            statement_time.label("now"),
            func.coalesce(views.c.duration_seconds, 0.0).label("duration"),
        )
        .join(consumers, consumers.c.name == views.c.consumer)
        .where(views.c.name.in_([*names]))
    )
    return {
        row.name: ViewStanding(row.populated, row.advanced_at, row.as_of, row.now, row.duration)
        for row in found
    }
