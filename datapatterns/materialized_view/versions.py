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
    views = materialized_views(view.names.schema)
    found = select(views.c.strategy, views.c.digest).where(views.c.name == view.names.next.view)
    row = conn.execute(found).one_or_none()
    return view if row is None else version_meant(view, *row)


def version_meant(view: ViewDefinition, strategy: str, digest: str) -> ViewDefinition:
    """Return the view, or the version kept by ``strategy`` from what ``digest`` stands for."""
    upcoming = view.under(view.names.next)
    is_meant = any(
        candidate.explanation.strategy == strategy
        and upcoming.blueprint(candidate).digest == digest
        for candidate in upcoming.candidates
    )
    return upcoming if is_meant else view
