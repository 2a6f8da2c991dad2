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
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.errors import (
    LeaseHeldError,
    LeaseLostError,
    ProjectionDefinitionError,
    ProjectionVersionError,
)
from datapatterns.event_sourcing.events import Position

ONLY_SHARD: Final = 0
"""The shard that owns all keys, as long as nothing is split."""

_RUNNABLE = ("building", "live", "standby")


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


def register(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection], *, empty: bool
) -> None:
    """Make sure that ``projection`` may run as it is declared, and that it has a checkpoint.

    Args:
        conn: A connection in a transaction.
        tables: Where the checkpoints are.
        projection: What to run.
        empty: Whether its read model is known to hold nothing.

    Raises:
        ProjectionVersionError: What is there was built by another version.
    """
    name, version = projection.name, projection.version
    in_table = issubclass(projection, Projection)
    # Versions of a table take each other's place; those in Redis stand side by side.
    found = _versions(conn, tables, name)
    if not found and not empty:
        raise ProjectionVersionError(name, declared=version, live=None)
    if version not in found and (not found or not in_table):
        _insert_version(conn, tables, projection, status="building" if found else "live")
        found = _versions(conn, tables, name)
    kind, status = found.get(version, (_kind(projection), "retired"))
    if kind != _kind(projection):
        raise ProjectionDefinitionError(name, f"the name is taken by a projection in a {kind}")
    if status not in _RUNNABLE:
        live = [v for v, (_, status) in found.items() if status == "live"]
        raise ProjectionVersionError(name, declared=version, live=live[0] if live else None)


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
        projections.c.status.in_(_RUNNABLE),
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
    """Return how far the projection is; None if this version has never run."""
    position = conn.scalar(
        select(tables.shards.c.position).where(
            tables.shards.c.name == projection.name,
            tables.shards.c.version == projection.version,
            tables.shards.c.shard == ONLY_SHARD,
        )
    )
    return None if position is None else Position(position)


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
        .values(
            owner=owner,
            lease_until=_until(seconds),
            epoch=shards.c.epoch + 1,
            updated_at=func.clock_timestamp(),
        )
        .returning(shards.c.position, shards.c.epoch, shards.c.build)
    ).one_or_none()
    if row is None:
        return None
    position, epoch, build = row
    return Lease(
        projection.name, projection.version, Position(position), epoch, build, owner, seconds
    )


def take_over(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    *,
    owner: str,
    seconds: float,
) -> Lease:
    """Take the lease, whoever holds it; what its holder has not committed yet is refused."""
    lease = _take(conn, tables, projection, owner=owner, seconds=seconds, condition=true())
    assert lease is not None, "take_over() needs a registered projection"  # noqa: S101
    return lease


def _versions(conn: Connection, tables: ProjectionTables, name: str) -> dict[int, tuple[str, str]]:
    projections = tables.projections
    rows = conn.execute(
        select(projections.c.version, projections.c.kind, projections.c.status).where(
            projections.c.name == name
        )
    )
    return {version: (kind, status) for version, kind, status in rows}


def _insert_version(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection], *, status: str
) -> None:
    # Two processes may start at the same time; the later one finds what the earlier one did.
    key = {"name": projection.name, "version": projection.version}
    conn.execute(
        insert(tables.projections)
        .values(**key, kind=_kind(projection), status=status)
        .on_conflict_do_nothing()
    )
    known = exists().where(
        tables.projections.c.name == projection.name,
        tables.projections.c.version == projection.version,
    )
    conn.execute(
        insert(tables.shards)
        .from_select(
            ["name", "version"],
            select(literal(projection.name), literal(projection.version)).where(known),
        )
        .on_conflict_do_nothing()
    )


def _kind(projection: type[AnyProjection]) -> str:
    return "table" if issubclass(projection, Projection) else "redis"


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
