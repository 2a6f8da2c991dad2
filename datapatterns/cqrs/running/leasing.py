"""Who may move a projection on: leases whose epoch fences those who lost them.

A lease says who *should* run. That it may be lost without noticing is made harmless by its
epoch: effects are committed by the same transaction that moves the checkpoint, and that moves
only under the latest epoch and from the position where the page began.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    exists,
    func,
    or_,
    select,
    true,
    update,
)

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.errors import (
    LeaseHeldError,
    LeaseLostError,
)
from datapatterns.event_sourcing.events import Position

ONLY_SHARD: Final = 0
"""The shard that owns all keys, as long as nothing is split."""

RUNNABLE: Final = ("building", "live", "standby")
"""In which states a version may be moved on."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to move a projection on.

    Attributes:
        position: How far it is.
        epoch: The fencing token; a later lease has a higher one.
        build: Which build the data belong to.
        seconds: For how long it is valid from each page on.
    """

    name: str
    version: int
    position: Position
    epoch: int
    build: UUID
    owner: str
    seconds: float


def claim(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    *,
    owner: str,
    seconds: float,
) -> Lease:
    """Take the lease if nobody holds it.

    Raises:
        LeaseHeldError: Somebody does.
    """
    shards = tables.shards
    free = or_(
        shards.c.lease_until.is_(None),
        shards.c.lease_until < func.clock_timestamp(),
        shards.c.owner == owner,
    )
    lease = _take(conn, tables, projection, owner=owner, seconds=seconds, condition=free)
    if lease is None:
        holder = conn.scalar(
            select(shards.c.owner).where(
                shards.c.name == projection.name, shards.c.version == projection.version
            )
        )
        raise LeaseHeldError(f"projection {projection.name}", owner=holder)
    return lease


def advance(
    conn: Connection,
    tables: ProjectionTables,
    lease: Lease,
    position: Position,
    *,
    error: Mapping[str, Any] | None = None,
) -> Lease:
    """Move the checkpoint to ``position`` and renew the lease, or refuse both.

    The last statement of the transaction that holds the effects: so whoever lost the lease loses
    its page as well, and the checkpoint is never ahead of the effects or behind them.

    Raises:
        LeaseLostError: Another lease was given since, or the checkpoint was moved.
    """
    shards, projections = tables.shards, tables.projections
    # Again, although the claim looked: a claim that waited for a rebuild saw the state before.
    runnable = exists().where(
        projections.c.name == lease.name,
        projections.c.version == lease.version,
        projections.c.status.in_(RUNNABLE),
    )
    moved = conn.execute(
        update(shards)
        .where(_held(tables, lease), shards.c.position == lease.position, runnable)
        .values(
            position=position,
            lease_until=_until(lease.seconds),
            updated_at=func.clock_timestamp(),
            error=None if error is None else dict(error),
        )
    )
    if moved.rowcount == 0:
        raise LeaseLostError(f"projection {lease.name}", epoch=lease.epoch)
    return replace(lease, position=position)


def take_over(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    *,
    owner: str,
    seconds: float,
    all_versions: bool,
) -> list[Lease]:
    """Take the leases on this version or on all that can run, whoever holds them.

    What their holders have not committed yet is refused.
    """
    shards, projections = tables.shards, tables.projections
    which = true() if all_versions else shards.c.version == projection.version
    rows = conn.execute(
        update(shards)
        .where(
            shards.c.name == projection.name,
            which,
            projections.c.name == shards.c.name,
            projections.c.version == shards.c.version,
            projections.c.status.in_(RUNNABLE),
        )
        .values(**_taken(tables, owner, seconds))
        .returning(shards.c.version, shards.c.position, shards.c.epoch, shards.c.build)
    )
    return [
        Lease(projection.name, version, Position(position), epoch, build, owner, seconds)
        for version, position, epoch, build in rows
    ]


def begin_build(
    conn: Connection, tables: ProjectionTables, lease: Lease, *, epoch_min: int
) -> Lease:
    """Give the data that are about to be built a name of their own, under a later lease.

    Args:
        conn: A connection in a transaction.
        tables: Where the leases are.
        lease: The latest one.
        epoch_min: The new lease's epoch is above it, for a store that has seen later ones.
    """
    shards = tables.shards
    build, epoch = conn.execute(
        update(shards)
        .where(_held(tables, lease))
        .values(
            build=func.gen_random_uuid(),
            epoch=func.greatest(shards.c.epoch, epoch_min) + 1,
            error=None,
        )
        .returning(shards.c.build, shards.c.epoch)
    ).one()
    return replace(lease, build=build, epoch=epoch)


def release(conn: Connection, tables: ProjectionTables, lease: Lease) -> None:
    """Give the lease back, so that the next runner need not wait; if it is lost, do nothing."""
    conn.execute(
        update(tables.shards)
        .where(_held(tables, lease))
        .values(owner=None, lease_until=None, updated_at=func.clock_timestamp())
    )


def read_position(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> Position | None:
    """Return how far the rows of a table are; None if this version did not build them."""
    position = conn.scalar(
        select(tables.shards.c.position).where(
            is_live(tables, projection),
            tables.shards.c.name == projection.name,
            tables.shards.c.version == projection.version,
            tables.shards.c.shard == ONLY_SHARD,
        )
    )
    return None if position is None else Position(position)


def is_live(tables: ProjectionTables, projection: type[AnyProjection]) -> ColumnElement[bool]:
    """Return the condition that this version is the one that is read."""
    return exists().where(
        tables.projections.c.name == projection.name,
        tables.projections.c.version == projection.version,
        tables.projections.c.status == "live",
    )


def read_live_version(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> int | None:
    """Return which version is the one that is read; None if none is."""
    return conn.scalar(
        select(tables.projections.c.version).where(
            tables.projections.c.name == projection.name, tables.projections.c.status == "live"
        )
    )


def read_build(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> UUID | None:
    """Return which build the data must belong to; None if this version has never run."""
    return conn.scalar(
        select(tables.shards.c.build).where(
            tables.shards.c.name == projection.name,
            tables.shards.c.version == projection.version,
            tables.shards.c.shard == ONLY_SHARD,
        )
    )


def is_latest(conn: Connection, tables: ProjectionTables, lease: Lease) -> bool:
    """Return whether no later lease was given."""
    return conn.scalar(select(tables.shards.c.epoch).where(_held(tables, lease))) is not None


def _take(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    *,
    owner: str,
    seconds: float,
    condition: ColumnElement[bool],
) -> Lease | None:
    shards = tables.shards
    row = conn.execute(
        update(shards)
        .where(
            shards.c.name == projection.name,
            shards.c.version == projection.version,
            shards.c.shard == ONLY_SHARD,
            condition,
        )
        .values(**_taken(tables, owner, seconds))
        .returning(shards.c.position, shards.c.epoch, shards.c.build)
    ).one_or_none()
    if row is None:
        return None
    position, epoch, build = row
    return Lease(
        projection.name, projection.version, Position(position), epoch, build, owner, seconds
    )


def _taken(tables: ProjectionTables, owner: str, seconds: float) -> dict[str, Any]:
    return {
        "owner": owner,
        "lease_until": _until(seconds),
        "epoch": tables.shards.c.epoch + 1,
        "updated_at": func.clock_timestamp(),
    }


def _held(tables: ProjectionTables, lease: Lease) -> ColumnElement[bool]:
    shards = tables.shards
    return and_(
        shards.c.name == lease.name,
        shards.c.version == lease.version,
        shards.c.shard == ONLY_SHARD,
        shards.c.epoch == lease.epoch,
    )


def _until(seconds: float) -> ColumnElement[datetime]:
    return func.clock_timestamp() + timedelta(seconds=seconds)
