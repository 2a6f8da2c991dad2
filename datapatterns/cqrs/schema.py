"""Tables of the projections: which there are, how far they are, who runs them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Integer,
    Named,
    Table,
    Text,
    TypedColumns,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

from datapatterns.sql.metadata import declared_once, library_metadata


class ProjectionColumns(TypedColumns):
    """One row for each version of a projection that was ever run."""

    name: Named[str] = Column(Text, primary_key=True)
    version: Named[int] = Column(Integer, primary_key=True)
    kind: Named[str] = Column(Text)
    status: Named[str] = Column(Text)
    target: Named[str | None] = Column(Text)
    created_at: Named[datetime] = Column(TIMESTAMP(timezone=True))


class ShardColumns(TypedColumns):
    """One row for each part of a projection that one runner at a time may move on."""

    name: Named[str] = Column(Text, primary_key=True)
    version: Named[int] = Column(Integer, primary_key=True)
    shard: Named[int] = Column(Integer, primary_key=True)
    mask: Named[int] = Column(Integer)
    position: Named[int] = Column(BigInteger)
    epoch: Named[int] = Column(BigInteger)
    build: Named[UUID] = Column(Uuid)
    owner: Named[str | None] = Column(Text)
    lease_until: Named[datetime | None] = Column(TIMESTAMP(timezone=True))
    updated_at: Named[datetime] = Column(TIMESTAMP(timezone=True))
    error: Named[dict[str, Any] | None] = Column(JSONB(none_as_null=True))


@dataclass(frozen=True, slots=True)
class ProjectionTables:
    """The tables in one schema."""

    projections: Table[ProjectionColumns]
    shards: Table[ShardColumns]


@declared_once
def projection_tables(schema: str, /) -> ProjectionTables:
    """Return the tables of the projections in ``schema``."""
    metadata = library_metadata(schema)
    projections = Table("projection", metadata, ProjectionColumns)
    shards = Table(
        "projection_shard",
        metadata,
        ShardColumns,
        ForeignKeyConstraint(["name", "version"], [projections.c.name, projections.c.version]),
    )
    return ProjectionTables(projections, shards)
