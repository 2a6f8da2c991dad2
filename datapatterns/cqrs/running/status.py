"""How far each projection is, in positions and in seconds, who runs it, and what stopped it."""

from itertools import groupby

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import TIMESTAMP

from datapatterns.cqrs.running.events_elsewhere import events_connection
from datapatterns.cqrs.running.progress import ProjectionStatus, SegmentStatus
from datapatterns.cqrs.schema import projection_tables
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.schema import event_tables
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
            projections.c.mode,
            shards.c.shard,
            shards.c.mask,
            shards.c.position,
            shards.c.owner,
            shards.c.lease_until,
            shards.c.error,
            shards.c.parked,
        )
        .join_from(projections, shards)
        .order_by(projections.c.name, projections.c.version, shards.c.shard)
    ).all()
    # After the checkpoints, so that it is not behind any of them.
    mark = store.high_water_mark(conn)
    ages: dict[Position, float] = {}
    statuses = []
    for version, of_version in groupby(rows, key=lambda row: row[:5]):
        segments = tuple(
            SegmentStatus(shard, mask, Position(position), owner, lease_until, error, parked)
            for *_, shard, mask, position, owner, lease_until, error, parked in of_version
        )
        position = min(segment.position for segment in segments)
        name, number, kind, status, mode = version
        if mode == "inline" and status == "live":  # runners have left its segments where they were
            position = mark
            ages.setdefault(mark, 0.0)
        if position not in ages:
            ages[position] = _seconds_behind(conn, store, position)
        statuses.append(
            ProjectionStatus(
                name=name,
                version=number,
                kind=kind,
                status=status,
                mode=mode,
                position=position,
                positions_behind=max(0, mark - position),
                seconds_behind=ages[position],
                segments=segments,
            )
        )
    return statuses


def count_unseen(conn: Connection, store: EventStore, position: Position) -> int:
    """Return how many events that are final lie behind ``position``; those of all types count."""
    mark = store.high_water_mark(conn)
    events = event_tables(store.schema).events
    unseen = select(func.count()).where(events.c.position > position, events.c.position <= mark)
    with events_connection(store, conn) as log:
        return log.execute(unseen).scalar_one()


def _seconds_behind(conn: Connection, store: EventStore, position: Position) -> float:
    unseen = store.read_log(conn, position, limit=1).events
    if not unseen:
        return 0.0
    now = conn.execute(select(func.clock_timestamp(type_=TIMESTAMP(timezone=True)))).scalar_one()
    return max(0.0, (now - unseen[0].recorded_at).total_seconds())
