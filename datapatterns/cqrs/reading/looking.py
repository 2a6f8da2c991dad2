"""Look what keeps a read model from going on."""

from sqlalchemy import Connection, func, select

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.reading.log_identity import read_end
from datapatterns.cqrs.reading.sights import Surroundings
from datapatterns.cqrs.reading.stalls import ShardState
from datapatterns.cqrs.schema import projection_tables
from datapatterns.event_sourcing.events import Position


def read_surroundings(
    conn: Connection, schema: str, projection: type[AnyProjection]
) -> Surroundings:
    """Look at the shards of all versions, and then at the log."""
    tables = projection_tables(schema)
    projections, shards = tables.projections, tables.shards
    held = func.coalesce(shards.c.lease_until > func.clock_timestamp(), False)
    rows = conn.execute(
        select(
            shards.c.version,
            projections.c.status,
            projections.c.mode,
            shards.c.position,
            held,
            shards.c.error,
        )
        .join_from(projections, shards)
        .where(projections.c.name == projection.name)
        .order_by(shards.c.version, shards.c.shard)
    )
    states = tuple(
        ShardState(version, status, mode, Position(position), held=led, error=error)
        for version, status, mode, position, led, error in rows
    )
    return Surroundings(states, read_end(conn, schema, projection))
