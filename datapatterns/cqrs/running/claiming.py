"""Who is there to move segments on, who holds them, and taking those that are one's share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from datapatterns.cqrs.running.leasing import RUNNABLE, Lease, held, take_where
from datapatterns.cqrs.running.sharing import SegmentKey, Version
from datapatterns.cqrs.schema import ProjectionTables

_FORGOTTEN_AFTER_LEASES = 10


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """What the database says of a segment that workers may move on.

    Attributes:
        owner: Who took its lease last, and has not given it back.
        lapsed: Whether that has lapsed.
        epoch: Of the latest lease.
        status: The version's.
    """

    owner: str | None
    lapsed: bool
    epoch: int
    status: str


def heartbeat(
    conn: Connection,
    tables: ProjectionTables,
    worker: str,
    versions: Iterable[Version],
    *,
    seconds: float,
) -> None:
    """Say that ``worker`` is alive and knows these versions, which are registered, and no others.

    Args:
        conn: A connection in a transaction.
        tables: Where workers are.
        worker: Who.
        versions: Of which it would take segments.
        seconds: How long leases are; who has not been heard of for ten of them is forgotten.
    """
    workers, known = tables.workers, sorted(versions)
    of_mine = tuple_(workers.c.name, workers.c.version)
    conn.execute(
        delete(workers).where(
            workers.c.worker == worker, of_mine.not_in(known) if known else workers.c.name != ""
        )
    )
    if known:
        rows = [{"name": name, "version": version, "worker": worker} for name, version in known]
        conn.execute(
            insert(workers)
            .values(rows)
            .on_conflict_do_update(
                index_elements=["name", "version", "worker"],
                set_={"seen_at": func.clock_timestamp()},
            )
        )
    key = workers.c.name, workers.c.version, workers.c.worker
    # Skipping what others delete: they would go through the same rows in another order.
    gone = (
        select(*key)
        .where(workers.c.seen_at < _ago(seconds * _FORGOTTEN_AFTER_LEASES))
        .with_for_update(skip_locked=True)
        .cte("gone")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    conn.execute(delete(workers).where(tuple_(*key).in_(select(*gone.c))))


def say_goodbye(conn: Connection, tables: ProjectionTables, worker: str) -> None:
    """Let nothing be shared out to ``worker`` any more."""
    conn.execute(delete(tables.workers).where(tables.workers.c.worker == worker))


def read_workers(
    conn: Connection, tables: ProjectionTables, *, seconds: float
) -> dict[str, frozenset[Version]]:
    """Return the workers that were heard of so lately, with the versions that each knows."""
    workers = tables.workers
    rows = conn.execute(
        select(workers.c.worker, workers.c.name, workers.c.version).where(
            workers.c.seen_at > _ago(seconds)
        )
    )
    found: dict[str, set[Version]] = {}
    for worker, name, version in rows:
        found.setdefault(worker, set()).add((name, version))
    return {worker: frozenset(versions) for worker, versions in found.items()}


def read_segments(conn: Connection, tables: ProjectionTables) -> dict[SegmentKey, SegmentRow]:
    """Return all segments that workers may move on.

    A version that is built in tables is moved on by its builder until it is ready.
    """
    shards, projections = tables.shards, tables.projections
    rows = conn.execute(
        select(
            shards.c.name,
            shards.c.version,
            shards.c.shard,
            shards.c.owner,
            case((shards.c.lease_until < func.clock_timestamp(), 1), else_=0),
            shards.c.epoch,
            projections.c.status,
        )
        .join_from(shards, projections)
        .where(moved_by_workers(tables))
    )
    return {
        SegmentKey(name, version, shard): SegmentRow(owner, bool(lapsed), epoch, status)
        for name, version, shard, owner, lapsed, epoch, status in rows
    }


def moved_by_workers(tables: ProjectionTables) -> ColumnElement[bool]:
    """Return the condition that a version is one that workers move on."""
    versions = tables.projections.c
    return and_(
        versions.status.in_(RUNNABLE),
        versions.mode == "async",
        or_(versions.status != "building", versions.kind == "redis"),
    )


def owners_of(
    segments: Mapping[SegmentKey, SegmentRow], workers: Mapping[str, frozenset[Version]], me: str
) -> tuple[dict[SegmentKey, str | None], dict[str, frozenset[Version]]]:
    """Return who holds what, and which workers are really there.

    Who lets a lease lapse is not, whatever was heard of them.
    """
    away = {row.owner for row in segments.values() if row.lapsed and row.owner != me}
    owners = {
        key: row.owner if not row.lapsed or row.owner == me else None
        for key, row in segments.items()
    }
    return owners, {worker: known for worker, known in workers.items() if worker not in away}


def claim_segments(
    conn: Connection,
    tables: ProjectionTables,
    keys: Sequence[SegmentKey],
    *,
    owner: str,
    seconds: float,
) -> list[Lease]:
    """Take the leases on ``keys`` that are free, lapsed or the owner's already."""
    if not keys:
        return []
    shards = tables.shards
    free = or_(
        shards.c.lease_until.is_(None),
        shards.c.lease_until < func.clock_timestamp(),
        shards.c.owner == owner,
    )
    wanted = tuple_(shards.c.name, shards.c.version, shards.c.shard).in_([tuple(k) for k in keys])
    return take_where(
        conn,
        tables,
        and_(wanted, free),
        of_version=tables.projections.c.mode == "async",
        owner=owner,
        seconds=seconds,
        skip_locked=True,
    )


def renew(conn: Connection, tables: ProjectionTables, leases: Iterable[Lease]) -> None:
    """Make ``leases`` last as long from now on as they did; what is lost stays lost.

    One that a page is just moving on is left out, for that renews it.
    """
    shards, wanted = tables.shards, list(leases)
    if not wanted:
        return
    key = shards.c.name, shards.c.version, shards.c.shard
    latest = [(one.name, one.version, one.segment.shard, one.epoch) for one in wanted]
    mine = (
        select(*key)
        .where(tuple_(*key, shards.c.epoch).in_(latest))
        .with_for_update(skip_locked=True)
        .cte("mine")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    seconds = max(lease.seconds for lease in wanted)
    conn.execute(
        update(shards)
        .where(tuple_(*key).in_(select(*mine.c)))
        .values(lease_until=func.clock_timestamp() + timedelta(seconds=seconds))
    )


def release_all(conn: Connection, tables: ProjectionTables, owner: str) -> None:
    """Give back all that ``owner`` has; pages that are under way are refused at their end."""
    shards = tables.shards
    key = shards.c.name, shards.c.version, shards.c.shard
    mine = (
        select(*key)
        .where(shards.c.owner == owner)
        .order_by(*key)
        .with_for_update()
        .cte("mine")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    conn.execute(
        update(shards)
        .where(tuple_(*key).in_(select(*mine.c)))
        .values(
            owner=None,
            lease_until=None,
            epoch=shards.c.epoch + 1,
            updated_at=func.clock_timestamp(),
        )
    )


def record_error(
    conn: Connection, tables: ProjectionTables, lease: Lease, error: Mapping[str, Any]
) -> None:
    """Keep why a segment was not moved on, until a page of it is applied."""
    conn.execute(
        update(tables.shards)
        .where(held(tables, lease))
        .values(error=dict(error), updated_at=func.clock_timestamp())
    )


def _ago(seconds: float) -> ColumnElement[Any]:
    return func.clock_timestamp() - timedelta(seconds=seconds)
