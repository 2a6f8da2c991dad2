"""How the live version of a projection is kept: by runners behind the log, or by appends inline."""

from sqlalchemy import Boolean, Connection, select, update

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.event_sourcing.events import Position
from datapatterns.sql.functions import library_function


def read_mode(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> str | None:
    """Return how this version is kept, ``async`` or ``inline``; None if it is not live."""
    return conn.scalar(
        select(tables.projections.c.mode).where(
            tables.projections.c.name == projection.name,
            tables.projections.c.version == projection.version,
            tables.projections.c.status == "live",
        )
    )


def set_mode(conn: Connection, schema: str, projection: type[AnyProjection], mode: str) -> bool:
    """Change how this version is kept; return whether it is live.

    It waits for all that are appending, and keeps others from it until the transaction ends.
    """
    changed = library_function(
        schema,
        "set_projection_mode",
        projection.name,
        projection.version,
        mode,
        returns=Boolean(),
    )
    return bool(conn.scalar(select(changed)))


def settle_at(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    position: Position,
) -> None:
    """Let runners go on behind what appends have kept, under later leases."""
    shards = tables.shards
    conn.execute(
        update(shards)
        .where(shards.c.name == projection.name, shards.c.version == projection.version)
        .values(position=position, epoch=shards.c.epoch + 1, owner=None, lease_until=None)
    )
