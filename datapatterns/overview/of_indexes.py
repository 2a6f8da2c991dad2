"""Index tables, in the words of the overview."""

from sqlalchemy import Connection

from datapatterns.index_table import Indexes, IndexReport
from datapatterns.overview.standing import Concern, Standing

_WAITING = ("building", "built")
_REASONS = {
    "missing": "it was never created",
    "changed": "it was created from another declaration",
    "detached": "writers pass it by",
    "building": "rows from before are still to be indexed, so it is not read",
    "built": "all rows are indexed, but it is not read yet",
}
_ADVICE = {
    "missing": "create() it in a migration",
    "changed": "drop() and create() it in a migration, then datapatterns indexes backfill {name}",
    "detached": "datapatterns indexes repair {name}",
    "building": "datapatterns indexes backfill {name}",
    "built": "datapatterns indexes backfill {name}",
}


def index_standings(conn: Connection, indexes: Indexes, *, database: str) -> list[Standing]:
    """Return how each index stands whose table is in this database."""
    reports = indexes.status(conn)
    return [_standing(one, database) for one in reports if one.state != "no_table"]


def _standing(one: IndexReport, database: str) -> Standing:
    advice = _ADVICE.get(one.state)
    concern = Concern.WAITING if one.state in _WAITING else Concern.WRONG
    return Standing(
        pattern="index",
        name=one.name,
        database=database,
        state=one.state,
        concern=Concern.FINE if one.state == "ready" else concern,
        reason=_REASONS.get(one.state),
        advice=None if advice is None else advice.format(name=one.name),
    )
