"""Index tables, in the words of the overview."""

from sqlalchemy import Connection

from datapatterns.index_table import Indexes, IndexReport, ShardIndexes
from datapatterns.index_table.entries import NEVER_BEHIND
from datapatterns.overview.standing import Concern, Standing, lateness
from datapatterns.sharding import ShardCluster

_WAITING = ("building", "built", "verifying")
_REASONS = {
    "missing": "it was never created",
    "changed": "it was created from another declaration",
    "detached": "writers pass it by",
    "building": "rows from before are still to be indexed, so it is not read",
    "built": "all rows are indexed, but it is not read yet",
    "verifying": "it is being compared with its table, and not read yet",
}
_ADVICE = {
    "missing": "create() it in a migration",
    "changed": "drop() and create() it in a migration, then datapatterns indexes backfill {name}",
    "detached": "datapatterns indexes repair {name}",
    "building": "datapatterns indexes backfill {name}",
    "built": "datapatterns indexes backfill {name}",
    "verifying": "datapatterns indexes backfill {name}",
    "failed": "datapatterns indexes conflicts {name}, then datapatterns indexes retry {name}",
}

_OVER_SHARDS = {
    **_REASONS,
    "missing": "it was not created on all shards",
    "dropping": "it is being dropped, so it is not read",
}
_CONCERNS = {
    "ready": Concern.FINE,
    **dict.fromkeys(("building", "built", "verifying", "dropping"), Concern.WAITING),
}


def index_standings(
    conn: Connection, indexes: Indexes, *, database: str, late_seconds: float
) -> list[Standing]:
    """Return how each index stands whose table is in this database."""
    reports = indexes.status(conn)
    return [_standing(one, database, late_seconds) for one in reports if one.state != "no_table"]


def shard_index_standings(cluster: ShardCluster) -> list[Standing]:
    """Return how each index over the shards of a cluster stands."""
    return [
        Standing(
            pattern="index",
            name=one.name,
            database="shards",
            state=one.state,
            concern=_CONCERNS.get(one.state, Concern.WRONG),
            reason=one.failure or _OVER_SHARDS.get(one.state),
            advice=one.advice,
        )
        for one in ShardIndexes.of(cluster).status(cluster)
    ]


def _standing(one: IndexReport, database: str, late_seconds: float) -> Standing:
    advice = _ADVICE.get(one.state)
    lag = None if one.lag == NEVER_BEHIND else one.lag
    concern = Concern.WAITING if one.state in _WAITING else Concern.WRONG
    if one.state == "ready" and one.problem is None:
        concern = Concern.FINE
        if lag is not None:
            concern = lateness(lag.behind_seconds, lag.pending_rows, late_seconds)
    return Standing(
        pattern="index",
        name=one.name,
        database=database,
        state=one.state,
        concern=concern,
        stale_seconds=None if lag is None else lag.behind_seconds,
        pending=None if lag is None else lag.pending_rows,
        reason=one.problem or _REASONS.get(one.state),
        advice=None if advice is None else advice.format(name=one.name),
    )
