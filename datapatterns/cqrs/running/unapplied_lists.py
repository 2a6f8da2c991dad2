"""What was parked and skipped, as people look at it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, and_, func, select, true

from datapatterns.cqrs.running.parking import of_version
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.event_sourcing.events import Position


@dataclass(frozen=True, slots=True)
class ParkedKey:
    """One row of a read model whose events wait.

    Attributes:
        key_digest: SHA-256 of its key, see `Projections.parked`.
        events: How many wait.
        position: Of the first, which could not be applied.
        event_type: Of the first.
        error: The class of what that raised.
        message: What that said.
        parked_at: Since when.
    """

    projection: str
    version: int
    key_digest: bytes
    events: int
    position: Position
    event_type: str
    error: str | None
    message: str | None
    parked_at: datetime


@dataclass(frozen=True, slots=True)
class SkippedEvent:
    """One event that was left out of one row, or, if ``key_digest`` is None, of all.

    Attributes:
        error: The class of what it raised; None if it waited for one that did.
    """

    projection: str
    version: int
    key_digest: bytes | None
    position: Position
    event_type: str
    error: str | None
    message: str | None
    skipped_at: datetime


def list_parked(
    conn: Connection, tables: ProjectionTables, which: tuple[str, int | None] | None, *, limit: int
) -> list[ParkedKey]:
    """Do what `Projections.parked` promises."""
    parked = tables.parked
    row: list[Column[Any]] = [parked.c.name, parked.c.version, parked.c.key_digest]
    counted = (
        select(*row, func.count().label("events"), func.min(parked.c.position).label("first"))
        .where(true() if which is None else of_version(parked, *which))
        .group_by(*row)
        .subquery()
    )
    first = and_(*(counted.c[c.name] == c for c in row), counted.c.first == parked.c.position)
    rows = conn.execute(
        select(parked, counted.c.events)
        .join_from(counted, parked, first)
        .order_by(parked.c.name, parked.c.version, parked.c.position, parked.c.key_digest)
        .limit(limit)
    )
    return [
        ParkedKey(
            projection=found.name,
            version=found.version,
            key_digest=found.key_digest,
            events=found.events,
            position=Position(found.position),
            event_type=found.event_type,
            error=found.error,
            message=found.message,
            parked_at=found.parked_at,
        )
        for found in rows
    ]


def list_skipped(
    conn: Connection, tables: ProjectionTables, which: tuple[str, int | None] | None, *, limit: int
) -> list[SkippedEvent]:
    """Do what `Projections.skipped` promises."""
    skipped = tables.skipped
    rows = conn.execute(
        select(skipped)
        .where(true() if which is None else of_version(skipped, *which))
        .order_by(skipped.c.name, skipped.c.version, skipped.c.position, skipped.c.key_digest)
        .limit(limit)
    )
    return [
        SkippedEvent(
            projection=found.name,
            version=found.version,
            key_digest=found.key_digest or None,
            position=Position(found.position),
            event_type=found.event_type,
            error=found.error,
            message=found.message,
            skipped_at=found.skipped_at,
        )
        for found in rows
    ]
