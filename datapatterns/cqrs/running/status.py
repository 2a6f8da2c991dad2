"""How far each projection is, in positions and in seconds, who runs it, and what stopped it."""

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import TIMESTAMP

from datapatterns.cqrs.running.progress import ProjectionStatus
from datapatterns.cqrs.schema import projection_tables
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore


def list_statuses(conn: Connection, store: EventStore) -> list[ProjectionStatus]:
    """Do what `Projections.status` promises."""
    tables = projection_tables(store.schema)
    projections, shards = tables.projections, tables.shards
    rows = conn.execute(
        select(
            projections.c.name,
            projections.c.version,
            projections.c.kind,
            projections.c.status,
            shards.c.position,
            shards.c.owner,
            shards.c.lease_until,
            shards.c.error,
        )
        .join_from(projections, shards)
        .order_by(projections.c.name, projections.c.version)
    ).all()
    # After the checkpoints, so that it is not behind any of them.
    mark = store.high_water_mark(conn)
    ages = {position: _seconds_behind(conn, store, position) for *_, position, _, _, _ in rows}
    return [
        ProjectionStatus(
            name=name,
            version=version,
            kind=kind,
            status=status,
            position=Position(position),
            positions_behind=max(0, mark - position),
            seconds_behind=ages[position],
            owner=owner,
            lease_until=lease_until,
            error=error,
        )
        for name, version, kind, status, position, owner, lease_until, error in rows
    ]


def _seconds_behind(conn: Connection, store: EventStore, position: int) -> float:
    unseen = store.read_log(conn, Position(position), limit=1).events
    if not unseen:
        return 0.0
    now = conn.execute(select(func.clock_timestamp(type_=TIMESTAMP(timezone=True)))).scalar_one()
    return max(0.0, (now - unseen[0].recorded_at).total_seconds())
