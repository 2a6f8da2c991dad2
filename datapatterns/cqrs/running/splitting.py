"""Split segments of a version and merge them again, whoever is moving them on.

Both give later leases: whoever held a segment is fenced, loses the page that is under way, and
claims what there is now. In the caller's transaction.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    and_,
    case,
    delete,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.running.parking import is_in_segment
from datapatterns.cqrs.running.segments import HASH_BITS, Segment
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.errors import ReadModelBuildingError, SegmentError, SegmentsBusyError
from datapatterns.event_sourcing.events import Position

MASK_MAX: Final = 2**HASH_BITS - 1

_SPLITTABLE: Final = ("ready", "live", "standby")


@dataclass(frozen=True, slots=True)
class SegmentPlace:
    """A segment and how far it is."""

    segment: Segment
    position: Position


def lock_segments(
    conn: Connection, tables: ProjectionTables, projection: type[AnyProjection], *, owner: str
) -> list[SegmentPlace]:
    """Return the segments of a version by shard, and let nobody move them until the commit.

    Args:
        conn: A connection in a transaction.
        tables: Where they are.
        projection: In which version.
        owner: Whose barriers do not count.

    Raises:
        ReadModelBuildingError: The version was never run, or is not whole.
        SegmentError: It is kept by appends.
        SegmentsBusyError: Another version is taking its place just now.
    """
    shards, projections = tables.shards, tables.projections
    rows = conn.execute(
        select(
            shards.c.shard,
            shards.c.mask,
            shards.c.position,
            case((shards.c.barrier_until >= func.clock_timestamp(), shards.c.owner), else_=owner),
        )
        .where(_of(tables, projection))
        .order_by(shards.c.shard)
        .with_for_update()
    ).all()
    version = conn.execute(
        select(projections.c.status, projections.c.mode).where(
            projections.c.name == projection.name, projections.c.version == projection.version
        )
    ).one_or_none()
    if version is None or version.status not in _SPLITTABLE:
        raise ReadModelBuildingError(projection.name, position=None)
    if version.mode != "async":
        raise SegmentError(projection.name, "appends keep it inline, so no worker moves it on")
    if any(holder != owner for *_, holder in rows):
        raise SegmentsBusyError(projection.name)
    return [
        SegmentPlace(Segment(shard, mask), Position(position)) for shard, mask, position, _ in rows
    ]


def split_segments(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    wanted: Collection[Segment],
    mask: int,
) -> None:
    """Split each of ``wanted``, which `lock_segments` returned, until all have ``mask``.

    All parts are where the whole was. An error stays with each of them, for it is not known whose
    keys it is about; that of the others goes with their next page.
    """
    shards = tables.shards
    epoch = _next_epoch(tables, projection)
    for segment in wanted:
        parts = range(segment.shard, mask + 1, segment.mask + 1)
        this = and_(_of(tables, projection), shards.c.shard == segment.shard)
        for shard in parts[1:]:
            part = select(
                shards.c.name,
                shards.c.version,
                literal(shard, Integer),
                literal(mask, Integer),
                shards.c.position,
                epoch,
                shards.c.build,
                shards.c.error,
                _count_parked(tables, projection, Segment(shard, mask)),
            ).where(this)
            columns = ["name", "version", "shard", "mask", "position", "epoch", "build"]
            conn.execute(insert(shards).from_select([*columns, "error", "parked"], part))
            _hand_on_followed(conn, tables, projection, segment.shard, shard)
        conn.execute(
            update(shards)
            .where(this)
            .values(
                mask=mask,
                epoch=epoch,
                owner=None,
                lease_until=None,
                parked=_count_parked(tables, projection, Segment(segment.shard, mask)),
                updated_at=func.clock_timestamp(),
            )
        )


def merge_segments(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    parts: Sequence[Segment],
    whole: Segment,
) -> None:
    """Make one of ``parts``, which `lock_segments` returned at one and the same position."""
    shards = tables.shards
    these = and_(_of(tables, projection), shards.c.shard.in_([part.shard for part in parts]))
    found = conn.execute(
        select(shards.c.error, shards.c.parked).where(these).order_by(shards.c.shard)
    ).all()
    others = and_(these, shards.c.shard != whole.shard)
    epoch = _next_epoch(tables, projection)
    conn.execute(
        update(shards)
        .where(_of(tables, projection), shards.c.shard == whole.shard)
        .values(
            mask=whole.mask,
            epoch=epoch,
            owner=None,
            lease_until=None,
            barrier=None,
            barrier_until=None,
            error=next((error for error, _ in found if error is not None), None),
            parked=sum(parked for _, parked in found),
            updated_at=func.clock_timestamp(),
        )
    )
    conn.execute(delete(shards).where(others))
    followed = tables.followed.c
    conn.execute(
        delete(tables.followed).where(
            followed.name == projection.name,
            followed.version == projection.version,
            followed.shard.in_([part.shard for part in parts if part.shard != whole.shard]),
        )
    )


def _hand_on_followed(
    conn: Connection,
    tables: ProjectionTables,
    projection: type[AnyProjection],
    shard: int,
    heir: int,
) -> None:
    """Let a new segment know what the one that it comes from has seen of a log elsewhere."""
    of_version = and_(
        tables.followed.c.name == projection.name,
        tables.followed.c.version == projection.version,
    )
    # One of its number may have been there before the version was built again.
    conn.execute(delete(tables.followed).where(of_version, tables.followed.c.shard == heir))
    kept = [c for c in tables.followed.c if c.name != "shard"]
    seen = select(literal(heir, Integer), *kept).where(of_version, tables.followed.c.shard == shard)
    names = ["shard", *(c.name for c in kept)]
    conn.execute(insert(tables.followed).from_select(names, seen))


def _next_epoch(tables: ProjectionTables, projection: type[AnyProjection]) -> ColumnElement[int]:
    # Above that of each segment there is: a shard that went and came again must not begin at 0.
    latest = tables.shards.alias("latest")
    return (
        select(func.max(latest.c.epoch) + 1)
        .where(latest.c.name == projection.name, latest.c.version == projection.version)
        .scalar_subquery()
    )


def _count_parked(
    tables: ProjectionTables, projection: type[AnyProjection], segment: Segment
) -> ColumnElement[int]:
    parked = tables.parked
    return (
        select(func.count())
        .where(
            parked.c.name == projection.name,
            parked.c.version == projection.version,
            is_in_segment(parked.c.key_digest, segment),
        )
        .scalar_subquery()
    )


def _of(tables: ProjectionTables, projection: type[AnyProjection]) -> ColumnElement[bool]:
    shards = tables.shards
    return and_(shards.c.name == projection.name, shards.c.version == projection.version)
