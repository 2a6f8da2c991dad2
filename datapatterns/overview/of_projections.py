"""Read models and the log that they follow, in the words of the overview."""

from datetime import UTC, datetime

from sqlalchemy import Connection

from datapatterns.cqrs import Projections, ProjectionStatus
from datapatterns.event_sourcing import Blocker, EventStore
from datapatterns.overview.standing import Concern, Standing, lateness

_GONE = ("retired",)
_BLOCKING_SECONDS = 5.0
"""An append that is open for longer has been left open: readers of the log wait for it."""


def log_standings(conn: Connection, store: EventStore) -> list[Standing]:
    """Return the end of the log that readers see, and every open append that holds them back."""
    blockers = store.blockers(conn)
    held = max((blocker.positions for blocker in blockers), default=0)
    end = Standing(
        pattern="log",
        name="events",
        database="main",
        state=f"read up to {store.high_water_mark(conn)}",
        concern=Concern.WAITING if blockers else Concern.FINE,
        pending=held,
    )
    return [end, *map(_blocking, blockers)]


def projection_standings(
    conn: Connection, projections: Projections, *, database: str, late_seconds: float
) -> list[Standing]:
    """Return how each version stands that was run and is not retired, and which never were."""
    statuses = [one for one in projections.status(conn) if one.status not in _GONE]
    known = {(one.name, one.version) for one in statuses}
    never_run = [
        Standing(
            pattern="projection",
            name=f"{declared.name} version {declared.version}",
            database=database,
            state="never run",
            concern=Concern.WRONG,
            reason="nobody has begun to fill it",
            advice="datapatterns worker",
        )
        for declared in projections.declared
        if (declared.name, declared.version) not in known
    ]
    return [*(_standing(one, database, late_seconds) for one in statuses), *never_run]


def _standing(one: ProjectionStatus, database: str, late_seconds: float) -> Standing:
    concern = lateness(one.seconds_behind, one.positions_behind, late_seconds)
    reason = advice = None
    if one.error is not None:
        concern, reason = Concern.WRONG, f"{one.error.get('error')}: {one.error.get('message')}"
        advice = f"mend what applies it, then datapatterns projections run {one.name}"
    elif one.status == "failed":
        concern, reason = Concern.WRONG, "building it has failed"
        advice = f"datapatterns projections rebuild {one.name}"
    elif one.parked:
        concern, reason = Concern.WRONG, f"{one.parked} events could not be applied and wait"
        advice = f"datapatterns projections parked {one.name}"
    elif concern is Concern.WRONG:
        reason = "it is behind" if one.owners else "it is behind, and nobody runs it"
        advice = "datapatterns projections status" if one.owners else "datapatterns worker"
    return Standing(
        pattern="projection",
        name=f"{one.name} version {one.version}",
        database=database,
        state=one.status if one.mode == "async" else f"{one.status} {one.mode}",
        concern=concern,
        stale_seconds=one.seconds_behind,
        pending=one.positions_behind,
        owner=", ".join(one.owners) or None,
        reason=reason,
        advice=advice,
    )


def _blocking(blocker: Blocker) -> Standing:
    since = blocker.since
    seconds = None if since is None else (datetime.now(UTC) - since).total_seconds()
    left_open = blocker.prepared_as is not None or (seconds or 0.0) > _BLOCKING_SECONDS
    if blocker.prepared_as is not None:
        holder = f"prepared transaction {blocker.prepared_as}"
        advice = "end it: COMMIT PREPARED or ROLLBACK PREPARED; datapatterns shards recover"
    else:
        holder = f"session {blocker.pid}"
        advice = f"let it end, or SELECT pg_terminate_backend({blocker.pid})"
    return Standing(
        pattern="log",
        name=holder,
        database="main",
        state=blocker.state,
        concern=Concern.WRONG if left_open else Concern.WAITING,
        stale_seconds=seconds,
        pending=blocker.positions,
        owner=blocker.application or blocker.client,
        reason="its open append holds back all readers of the log",
        advice=advice,
    )
