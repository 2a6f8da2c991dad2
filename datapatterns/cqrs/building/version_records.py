"""What is written down of a projection's versions: which is live, and where the others lie."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import Connection, and_, delete, func, insert, select, text, update

from datapatterns.cqrs.running.segments import Segment
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.event_sourcing.events import START, Position

_ALONE = text("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(:what, 0))")


class Shadow(NamedTuple):
    """Where the rows of one live table lie while their version is not the live one.

    Attributes:
        table: Its name, in the schema of the live one.
        names: What its indexes and sequences are to be called, by what they are called.
    """

    table: str
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of a projection, as it is written down.

    Attributes:
        targets: Its live tables, as PostgreSQL writes their names.
        shadows: By live table; none for the live version.
    """

    name: str
    version: int
    kind: str
    status: str
    mode: str
    targets: tuple[str, ...]
    shadows: Mapping[str, Shadow]


def hold_versions(conn: Connection, schema: str, name: str, versions: Iterable[int]) -> None:
    """Keep others from building, promoting or retiring these versions until the transaction ends.

    First of all locks, so that nobody who has it waits for somebody who wants it.
    """
    for version in sorted(versions):
        conn.execute(_ALONE, {"what": f"{schema}.projection {name} {version}"})


def read_versions(
    conn: Connection, tables: ProjectionTables, name: str, *, hold: bool = False
) -> dict[int, VersionRecord]:
    """Return all versions that are known, by number; held until the transaction ends if asked."""
    columns = tables.projections.c
    asked = (
        select(
            columns.name,
            columns.version,
            columns.kind,
            columns.status,
            columns.mode,
            columns.targets,
            columns.shadows,
        )
        .where(columns.name == name)
        .order_by(columns.version)
    )
    # Whoever only refers to a version, by a segment, is not held up.
    rows = conn.execute(asked.with_for_update(key_share=True) if hold else asked)
    return {
        row.version: VersionRecord(
            row.name,
            row.version,
            row.kind,
            row.status,
            row.mode,
            tuple(row.targets),
            {target: Shadow(**shadow) for target, shadow in row.shadows.items()},
        )
        for row in rows
    }


def write_version(
    conn: Connection,
    tables: ProjectionTables,
    record: VersionRecord,
    *,
    status: str,
    targets: Iterable[str],
    shadows: Mapping[str, Shadow],
) -> None:
    """Write down how a version stands now."""
    columns = tables.projections.c
    conn.execute(
        update(tables.projections)
        .where(columns.name == record.name, columns.version == record.version)
        .values(
            status=status,
            targets=list(targets),
            shadows={target: shadow._asdict() for target, shadow in shadows.items()},
        )
    )


def begin_segments(
    conn: Connection, tables: ProjectionTables, name: str, version: int, *, count: int
) -> UUID:
    """Give a version ``count`` new segments at the beginning of the log; return their build.

    Whoever has a lease on one that there was loses it: a new epoch is higher than all before.
    """
    shards = tables.shards
    mine = and_(shards.c.name == name, shards.c.version == version)
    epoch = conn.scalar(select(func.coalesce(func.max(shards.c.epoch), 0)).where(mine)) or 0
    conn.execute(delete(shards).where(mine))
    followed = tables.followed
    conn.execute(delete(followed).where(followed.c.name == name, followed.c.version == version))
    forget_unapplied(conn, tables, name, version)
    build = uuid4()
    conn.execute(
        insert(shards),
        [
            {
                "name": name,
                "version": version,
                "shard": shard,
                "mask": count - 1,
                "position": START,
                "epoch": epoch + 1,
                "build": build,
            }
            for shard in range(count)
        ],
    )
    return build


def forget_unapplied(conn: Connection, tables: ProjectionTables, name: str, version: int) -> None:
    """Forget which events a version could not apply."""
    for table in (tables.parked, tables.skipped):
        conn.execute(delete(table).where(table.c.name == name, table.c.version == version))
    shards = tables.shards
    mine = and_(shards.c.name == name, shards.c.version == version)
    conn.execute(update(shards).where(mine).values(parked=0, error=None))


class SegmentState(NamedTuple):
    """How far a segment is, of which build."""

    segment: Segment
    position: Position
    build: UUID


def read_segments(
    conn: Connection, tables: ProjectionTables, name: str, version: int, *, hold: bool = False
) -> list[SegmentState]:
    """Return the segments of a version, by shard; held until the transaction ends if asked for."""
    shards = tables.shards.c
    asked = (
        select(shards.shard, shards.mask, shards.position, shards.build)
        .where(shards.name == name, shards.version == version)
        .order_by(shards.shard)
    )
    rows = conn.execute(asked.with_for_update() if hold else asked)
    return [
        SegmentState(Segment(row.shard, row.mask), Position(row.position), row.build)
        for row in rows
    ]


def fence(
    conn: Connection, tables: ProjectionTables, name: str, versions: Iterable[int]
) -> dict[int, list[Position]]:
    """Take all leases of these versions away and lift their barriers; return their positions."""
    shards = tables.shards
    mine = and_(shards.c.name == name, shards.c.version.in_(list(versions)))
    # In one order, as whoever claims several does it.
    conn.execute(
        select(shards.c.shard).where(mine).order_by(shards.c.version, shards.c.shard)
        .with_for_update()
    )  # fmt: skip
    rows: Iterable[Any] = conn.execute(
        update(shards)
        .where(mine)
        .values(
            epoch=shards.c.epoch + 1,
            owner=None,
            lease_until=None,
            barrier=None,
            barrier_until=None,
        )
        .returning(shards.c.version, shards.c.position)
    )
    positions: dict[int, list[Position]] = {}
    for version, position in rows:
        positions.setdefault(version, []).append(Position(position))
    return positions
