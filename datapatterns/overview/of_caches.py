"""Caches and the relay that tells Redis of writes, in the words of the overview."""

from datapatterns.cache_aside import CacheRelay, FollowedTable
from datapatterns.overview.standing import Concern, Standing, lateness

_REDIS = "redis"


def cache_standings(relay: CacheRelay, *, late_seconds: float) -> list[Standing]:
    """Return how far Redis has been told of what was written, and what each cache holds."""
    status = relay.status()
    concern = lateness(status.waiting_seconds, status.waiting_rows, late_seconds)
    state, reason, advice = "vouched for", None, None
    if not status.is_known:
        state, concern = "no round yet", Concern.WAITING
        reason, advice = "nobody has told Redis of this database", "datapatterns worker"
    elif status.is_vouched_for is None:
        state, concern = "Redis does not answer", Concern.WRONG
        reason, advice = "readers ask the database meanwhile", "datapatterns doctor"
    elif not status.is_vouched_for:
        state, concern = "hits are not served", Concern.WRONG
        reason, advice = "no round has ended lately for this server", "datapatterns worker"
    elif concern is Concern.WRONG:
        reason, advice = "invalidations wait to be sent", "datapatterns worker"
    told = Standing(
        pattern="cache",
        name=f"relay of {status.target}",
        database=_REDIS,
        state=state,
        concern=concern,
        stale_seconds=status.waiting_seconds,
        pending=status.waiting_rows,
        reason=reason,
        advice=advice,
    )
    held = [
        Standing(pattern="cache", name=name, database=_REDIS, state=f"{values} values")
        for name, values in status.values.items()
    ]
    return [
        told,
        *held,
        *(_half_captured(each) for each in status.followed if each.further_columns),
    ]


def _half_captured(table: FollowedTable) -> Standing:
    columns = ", ".join(table.further_columns)
    return Standing(
        pattern="cache",
        name=table.name,
        database="main",
        state="columns not captured",
        concern=Concern.WRONG,
        reason=f"changes of {columns} are not logged, so all is forgotten each round",
        advice="let its owner call Cache.capture() again",
    )
