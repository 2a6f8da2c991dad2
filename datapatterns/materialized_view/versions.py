"""Which version of a view a declaration means, while one is going to take the other's place."""

from sqlalchemy import Connection, select

from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.schema import materialized_views


def version_at_hand(conn: Connection, view: ViewDefinition) -> ViewDefinition:
    """Return the view, or the version that is going to take its place if that is meant.

    Code of before a migration means the view that readers see, and keeps it; code of after it
    means the next version. Whoever could mean either, means the next: it is kept in another way
    that is as right.
    """
    views, names = materialized_views(view.names.schema), view.names
    found = conn.execute(
        select(views.c.strategy, views.c.digest).where(views.c.name == names.next.view)
    ).one_or_none()
    if found is None:
        return view
    upcoming = view.under(names.next)
    is_meant = any(
        candidate.explanation.strategy == found.strategy
        and upcoming.blueprint(candidate).digest == found.digest
        for candidate in upcoming.candidates
    )
    return upcoming if is_meant else view
