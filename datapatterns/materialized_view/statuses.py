"""How a view stands, whatever is the matter with it."""

from sqlalchemy import Connection

from datapatterns.errors import ForeignSnapshotError, ViewChangedError, ViewMissingError
from datapatterns.materialized_view.policy import RefreshPolicy
from datapatterns.materialized_view.reports import Freshness, ViewState, ViewStatus
from datapatterns.materialized_view.versions import version_at_hand
from datapatterns.materialized_view.view import MaterializedView


def read_status(
    conn: Connection, view: MaterializedView, parents: tuple[str, ...], *, limit: int
) -> ViewStatus:
    """Return how ``view`` stands; its pending changes are counted up to ``limit`` in each log."""
    explanation, freshness = view.explain(), None
    try:
        explanation = view.explain(conn)
        freshness = view.freshness(conn, limit=limit)
    except ViewMissingError:
        state = ViewState.MISSING
    except ViewChangedError:
        state = ViewState.CHANGED
    except ForeignSnapshotError:
        state = ViewState.FOREIGN
    else:
        state = state_of(freshness, view.policy)
        if freshness.populated and version_at_hand(conn, view.definition) is not view.definition:
            state = ViewState.REPLACING
    return ViewStatus(view.name, state, explanation, view.policy, parents, freshness)


def state_of(freshness: Freshness, policy: RefreshPolicy) -> ViewState:
    """Return in one word how fresh a view is that was created from the query at hand."""
    if not freshness.populated:
        return ViewState.UNPOPULATED
    if not freshness.pending_rows and not freshness.has_to_be_rebuilt:
        return ViewState.FRESH
    allowed = policy.max_staleness_seconds
    overdue = allowed is not None and freshness.stale_seconds > allowed
    return ViewState.OVERDUE if overdue else ViewState.STALE
