"""Who may move a segment on: leases whose epoch fences those who lost them.

A lease says who *should* run. That it may be lost without noticing is made harmless by its
epoch: effects are committed by the same transaction that moves the checkpoint, and that moves
only under the latest epoch and from the position where the page began.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    ScalarSelect,
    and_,
    exists,
    func,
    or_,
    select,
    true,
    update,
)

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.running.modes import read_mode
from datapatterns.cqrs.running.segments import Segment
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.errors import LeaseHeldError, ProjectionModeError
from datapatterns.event_sourcing.events import Position

RUNNABLE: Final = ("building", "ready", "live", "standby")
"""In which states a version may be moved on."""


WHOLE_STATES: Final = ("ready", "live", "standby")
"""In which states a version has all of its rows."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to move one segment of a projection on.

    Attributes:
        segment: Which keys.
        position: How far they are.
        epoch: The fencing token; a later lease has a higher one.
        build: Which build the data belong to.
        status: The version's, as it was claimed: it says in which tables its rows are.
        barrier: Not beyond this position, see `current_barrier`.
        parked: How many of its events are parked.
        seconds: For how long it is valid from each page on.
        seen: Up to where nothing else concerns it, if that was not worth writing down.
    """

    name: str
    version: int
    segment: Segment
    position: Position
    epoch: int
    build: UUID
    status: str
    barrier: Position | None
    parked: int
    owner: str
    seconds: float
    seen: Position | None = None

    @property
    def read_to(self) -> Position:
        """After which position its next page begins."""
        return self.position if self.seen is None else self.seen


def claim(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    *,
    owner: str,
    seconds: float,
) -> list[Lease]:
    """Take the leases that nobody holds, by segment.

    Raises:
        LeaseHeldError: Somebody holds them all.
        ProjectionModeError: Appends keep it.
    """
    shards = tables.shards
    free = or_(
        shards.c.lease_until.is_(None),
        shards.c.lease_until < func.clock_timestamp(),
        shards.c.owner == owner,
    )
    mine = _of_version(tables, projection.name, projection.version)
    by_runners = tables.projections.c.mode == "async"
    leases = take_where(
        conn, tables, and_(mine, free), of_version=by_runners, owner=owner, seconds=seconds
    )
    if not leases:
        if read_mode(conn, tables, projection) == "inline":
            raise ProjectionModeError(
                projection.name, mode="inline", advice="appends keep it, so no runner may"
            )
        holder = conn.scalar(select(shards.c.owner).where(mine).limit(1))
        raise LeaseHeldError(f"projection {projection.name}", owner=holder)
    return leases


def take_over(  # noqa: PLR0913 -- all that is to be said about a lease
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    *,
    owner: str,
    seconds: float,
    all_versions: bool,
    shard: int | None = None,
) -> list[Lease]:
    """Take the leases on this version or on all that can run, whoever holds them.

    With ``shard``, only that of one segment.

    What their holders have not committed yet is refused.
    """
    version = tables.shards.c.version == projection.version
    one = true() if shard is None else tables.shards.c.shard == shard
    of_name = tables.shards.c.name == projection.name
    which = and_(of_name, one, true() if all_versions else version)
    return take_where(conn, tables, which, owner=owner, seconds=seconds)


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
        .where(held(tables, lease))
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
        .where(held(tables, lease))
        .values(owner=None, lease_until=None, updated_at=func.clock_timestamp())
    )


def read_position(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> Position | None:
    """Return how far the live tables are; None if they are not there for this version.

    They are if it built them, or has before another took its place; with several segments, they
    are as far as the last of them.
    """
    projections, shards = tables.projections.c, tables.shards.c
    position = conn.scalar(
        select(func.min(shards.position))
        .join_from(
            tables.shards,
            tables.projections,
            and_(projections.name == shards.name, projections.version == shards.version),
        )
        .where(is_shown(tables, projection))
    )
    return None if position is None else Position(position)


def is_shown(tables: ProjectionTables, projection: type[AnyProjection]) -> ColumnElement[bool]:
    """Return the condition that a version is what readers of ``projection`` read.

    That is the live one, if it is this one or has taken its place.
    """
    projections, stands = tables.projections.c, tables.projections.alias("stands").c
    return and_(
        projections.name == projection.name,
        projections.status == "live",
        exists().where(
            stands.name == projection.name,
            stands.version == projection.version,
            stands.status.in_(("live", "standby")),
        ),
    )


def shown_version(tables: ProjectionTables, projection: type[AnyProjection]) -> ScalarSelect[int]:
    """Return as a subquery which version readers of ``projection`` read; NULL if none."""
    versions = tables.projections.c
    return select(versions.version).where(is_shown(tables, projection)).scalar_subquery()


def is_shown_inline(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> bool:
    """Return whether appends keep what readers of ``projection`` read."""
    mode = conn.scalar(select(tables.projections.c.mode).where(is_shown(tables, projection)))
    return mode == "inline"


def read_own_position(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> Position | None:
    """Return how far the rows of this version are, in whichever tables; None if not whole."""
    position = conn.scalar(
        select(func.min(tables.shards.c.position)).where(
            exists().where(
                tables.projections.c.name == projection.name,
                tables.projections.c.version == projection.version,
                tables.projections.c.status.in_(WHOLE_STATES),
            ),
            _of_version(tables, projection.name, projection.version),
        )
    )
    return None if position is None else Position(position)


def read_status(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection]
) -> str | None:
    """Return how this version stands; None if it was never run."""
    return conn.scalar(
        select(tables.projections.c.status).where(
            tables.projections.c.name == projection.name,
            tables.projections.c.version == projection.version,
        )
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
    """Return which build the data must belong to; None if this version has never run.

    Of a read model in Redis, which has one segment.
    """
    return conn.scalar(
        select(tables.shards.c.build).where(
            _of_version(tables, projection.name, projection.version), tables.shards.c.shard == 0
        )
    )


def is_latest(conn: Connection, tables: ProjectionTables, lease: Lease) -> bool:
    """Return whether no later lease was given."""
    return conn.scalar(select(tables.shards.c.epoch).where(held(tables, lease))) is not None


def take_where(  # noqa: PLR0913 -- which leases, for whom, and how
    conn: Connection,
    tables: ProjectionTables,
    condition: ColumnElement[bool],
    *,
    of_version: ColumnElement[bool] | None = None,
    owner: str,
    seconds: float,
    skip_locked: bool = False,
) -> list[Lease]:
    """Take the leases of the segments that ``condition`` selects, and return them by shard.

    Args:
        conn: A connection in a transaction.
        tables: Where the leases are.
        condition: Of rows of ``projection_shard``.
        of_version: Of their rows of ``projection``.
        owner: Who takes them.
        seconds: For how long.
        skip_locked: Leave out those that somebody else is just taking, or moving on.
    """
    shards, projections = tables.shards, tables.projections
    # All take them in one order, so no two wait for each other.
    wanted = (
        select(shards.c.name, shards.c.version, shards.c.shard)
        .where(condition)
        .order_by(shards.c.name, shards.c.version, shards.c.shard)
        .with_for_update(skip_locked=skip_locked)
        .cte("wanted")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    rows = conn.execute(
        update(shards)
        .where(
            shards.c.name == wanted.c.name,
            shards.c.version == wanted.c.version,
            shards.c.shard == wanted.c.shard,
            projections.c.name == shards.c.name,
            projections.c.version == shards.c.version,
            projections.c.status.in_(RUNNABLE),
            true() if of_version is None else of_version,
        )
        .values(
            owner=owner,
            lease_until=_until(seconds),
            epoch=shards.c.epoch + 1,
            updated_at=func.clock_timestamp(),
        )
        .returning(*shards.c, projections.c.status)
    ).all()
    return sorted(_leases(rows, owner, seconds), key=lambda lease: lease.segment.shard)


def _leases(rows: Iterable[Any], owner: str, seconds: float) -> list[Lease]:
    return [
        Lease(
            name=row.name,
            version=row.version,
            segment=Segment(row.shard, row.mask),
            position=Position(row.position),
            epoch=row.epoch,
            build=row.build,
            status=row.status,
            # Whether it has expired, the first page asks.
            barrier=None if row.barrier is None else Position(row.barrier),
            parked=row.parked,
            owner=owner,
            seconds=seconds,
        )
        for row in rows
    ]


def _of_version(tables: ProjectionTables, name: str, version: int) -> ColumnElement[bool]:
    return and_(tables.shards.c.name == name, tables.shards.c.version == version)


def held(tables: ProjectionTables, lease: Lease) -> ColumnElement[bool]:
    """Return the condition that picks the segment of ``lease`` if no later one was given."""
    return and_(
        _of_version(tables, lease.name, lease.version),
        tables.shards.c.shard == lease.segment.shard,
        tables.shards.c.epoch == lease.epoch,
    )


def _until(seconds: float) -> ColumnElement[datetime]:
    return func.clock_timestamp() + timedelta(seconds=seconds)
