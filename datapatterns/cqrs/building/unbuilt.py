"""Claim what is left of a build: segments that nobody is at."""

from uuid import UUID

from sqlalchemy import Connection, and_, func, or_, select

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.running.leasing import Lease, take_where
from datapatterns.cqrs.running.runners import LeaseTerms
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.event_sourcing.events import Position


def claim_unbuilt(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    *,
    build: UUID,
    below: Position,
    terms: LeaseTerms,
) -> Lease | None:
    """Take the lease on one segment that nobody holds and that is not yet at ``below``.

    Args:
        conn: A connection in a transaction.
        tables: Where the leases are.
        projection: Whose segment.
        build: Of this build only; of a later one others take care.
        below: Up to where segments are to be built.
        terms: Who takes it, and for how long.

    Returns:
        None if there is no such segment.
    """
    shards = tables.shards.c
    mine = and_(
        shards.name == projection.name,
        shards.version == projection.version,
        shards.build == build,
    )
    free = or_(shards.lease_until.is_(None), shards.lease_until < func.clock_timestamp())
    shard = conn.scalar(
        select(shards.shard)
        .where(mine, free, shards.position < below)
        .order_by(shards.shard)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if shard is None:
        return None
    taken = and_(mine, shards.shard == shard)
    leases = take_where(conn, tables, taken, owner=terms.owner, seconds=terms.seconds)
    return next(iter(leases), None)
