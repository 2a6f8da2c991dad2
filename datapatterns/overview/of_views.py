"""Materialized views, in the words of the overview."""

from sqlalchemy import Connection

from datapatterns.materialized_view import Views, ViewState, ViewStatus
from datapatterns.overview.standing import Concern, Standing

_CONCERNS = {
    ViewState.FRESH: Concern.FINE,
    ViewState.STALE: Concern.WAITING,
    ViewState.REPLACING: Concern.WAITING,
}
_ADVICE = {
    ViewState.UNPOPULATED: "datapatterns views populate {name}",
    ViewState.REPLACING: "datapatterns views refresh {name}",
    ViewState.MISSING: "create() it in a migration",
    ViewState.CHANGED: "drop() and create() it in a migration, then datapatterns views populate",
    ViewState.FOREIGN: "call ChangeLog().rebase(conn), then datapatterns views populate {name}",
    ViewState.OVERDUE: "is a worker running? datapatterns worker, or views refresh {name}",
}
_REASONS = {
    ViewState.UNPOPULATED: "it was never filled",
    ViewState.MISSING: "it was never created",
    ViewState.CHANGED: "it was created from another query than is declared",
    ViewState.FOREIGN: "the database was restored from another one",
    ViewState.OVERDUE: "it is behind for longer than was declared",
}


def view_standings(conn: Connection, views: Views, *, limit: int) -> list[Standing]:
    """Return how each declared view stands; changes are counted up to ``limit``."""
    return [_standing(status) for status in views.status(conn, limit=limit)]


def _standing(status: ViewStatus) -> Standing:
    fresh, advice = status.freshness, _ADVICE.get(status.state)
    return Standing(
        pattern="view",
        name=status.name,
        database="main",
        state=status.state.value,
        concern=_CONCERNS.get(status.state, Concern.WRONG),
        stale_seconds=None if fresh is None else fresh.stale_seconds,
        pending=None if fresh is None else fresh.pending_rows,
        reason=_REASONS.get(status.state),
        advice=None if advice is None else advice.format(name=status.name),
    )
