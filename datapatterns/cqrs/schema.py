"""Tables of the projections and of commands: what there is, how far it is, what was done."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Identity,
    Integer,
    LargeBinary,
    Named,
    SmallInteger,
    Table,
    Text,
    TypedColumns,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB, TIMESTAMP

from datapatterns.sql.metadata import declared_once, library_metadata

C = TypeVar("C", bound=TypedColumns)


class ProjectionColumns(TypedColumns):
    """One row for each version of a projection that was ever run."""

    name: Named[str] = Column(Text, primary_key=True)
    version: Named[int] = Column(Integer, primary_key=True)
    kind: Named[str] = Column(Text)
    status: Named[str] = Column(Text)
    mode: Named[str] = Column(Text)
    targets: Named[list[str]] = Column(ARRAY(Text))
    shadows: Named[dict[str, Any]] = Column(JSONB)
    created_at: Named[datetime] = Column(TIMESTAMP(timezone=True))


class OwnedTableColumns(TypedColumns):
    """One row for each table that a live version writes: no two projections may write one."""

    target: Named[str] = Column(Text, primary_key=True)
    name: Named[str] = Column(Text)


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
    barrier: Named[int | None] = Column(BigInteger)
    barrier_until: Named[datetime | None] = Column(TIMESTAMP(timezone=True))
    parked: Named[int] = Column(BigInteger)


class WorkerColumns(TypedColumns):
    """One row for each version that a worker knows how to run, with when it was last heard of."""

    name: Named[str] = Column(Text, primary_key=True)
    version: Named[int] = Column(Integer, primary_key=True)
    worker: Named[str] = Column(Text, primary_key=True)
    seen_at: Named[datetime] = Column(TIMESTAMP(timezone=True))


class FollowedLogColumns(TypedColumns):
    """One row for each segment whose events are on another server, with what is known of them."""

    name: Named[str] = Column(Text, primary_key=True)
    version: Named[int] = Column(Integer, primary_key=True)
    shard: Named[int] = Column(Integer, primary_key=True)
    log: Named[str] = Column(Text)
    position: Named[int] = Column(BigInteger)
    witness: Named[str] = Column(Text)
    mark: Named[int] = Column(BigInteger)
    seen_at: Named[datetime] = Column(TIMESTAMP(timezone=True))
    caught_up_at: Named[datetime | None] = Column(TIMESTAMP(timezone=True))


class ParkedColumns(TypedColumns):
    """One row for each event that waits, for one key, until somebody has mended what refused it."""

    name: Named[str] = Column(Text, primary_key=True)
    version: Named[int] = Column(Integer, primary_key=True)
    key_digest: Named[bytes] = Column(LargeBinary, primary_key=True)
    position: Named[int] = Column(BigInteger, primary_key=True)
    event_type: Named[str] = Column(Text)
    error: Named[str | None] = Column(Text)
    message: Named[str | None] = Column(Text)
    silent: Named[bool] = Column(Boolean)
    parked_at: Named[datetime] = Column(TIMESTAMP(timezone=True))


class SkippedColumns(TypedColumns):
    """One row for each event that was left out of one row, or of all: an empty digest."""

    name: Named[str] = Column(Text, primary_key=True)
    version: Named[int] = Column(Integer, primary_key=True)
    position: Named[int] = Column(BigInteger, primary_key=True)
    key_digest: Named[bytes] = Column(LargeBinary, primary_key=True)
    event_type: Named[str] = Column(Text)
    error: Named[str | None] = Column(Text)
    message: Named[str | None] = Column(Text)
    skipped_at: Named[datetime] = Column(TIMESTAMP(timezone=True))


class OutboxColumns(TypedColumns):
    """One row for each message that a projection has emitted and no relay has passed on."""

    id: Named[int] = Column(BigInteger, Identity(always=True), primary_key=True)
    projection: Named[str] = Column(Text)
    dedupe: Named[str] = Column(Text)
    topic: Named[str] = Column(Text)
    key: Named[str] = Column(Text)
    bucket: Named[int] = Column(SmallInteger)
    payload: Named[Any] = Column(JSONB)
    position: Named[int] = Column(BigInteger)
    created_at: Named[datetime] = Column(TIMESTAMP(timezone=True))
    attempts: Named[int] = Column(Integer)
    retry_at: Named[datetime | None] = Column(TIMESTAMP(timezone=True))
    given_up_at: Named[datetime | None] = Column(TIMESTAMP(timezone=True))
    error: Named[str | None] = Column(Text)


class ExecutionColumns(TypedColumns):
    """One row for each idempotency key under which a command was executed."""

    tenant: Named[str] = Column(Text, primary_key=True)
    key: Named[str] = Column(Text, primary_key=True)
    command: Named[str] = Column(Text)
    version: Named[int] = Column(Integer)
    digest: Named[bytes] = Column(LargeBinary)
    execution_id: Named[UUID] = Column(Uuid)
    executed_at: Named[datetime] = Column(TIMESTAMP(timezone=True))
    position: Named[int | None] = Column(BigInteger)
    result: Named[str | None] = Column(JSON)


@dataclass(frozen=True, slots=True)
class ProjectionTables:
    """The tables in one schema."""

    projections: Table[ProjectionColumns]
    owned: Table[OwnedTableColumns]
    shards: Table[ShardColumns]
    workers: Table[WorkerColumns]
    parked: Table[ParkedColumns]
    skipped: Table[SkippedColumns]
    followed: Table[FollowedLogColumns]


@declared_once
def projection_tables(schema: str, /) -> ProjectionTables:
    """Return the tables of the projections in ``schema``."""
    metadata = library_metadata(schema)
    projections = Table("projection", metadata, ProjectionColumns)

    def of_a_version(name: str, columns: type[C]) -> Table[C]:
        version = ForeignKeyConstraint(
            ["name", "version"], [projections.c.name, projections.c.version]
        )
        return Table(name, metadata, columns, version)

    return ProjectionTables(
        projections,
        Table("projection_table", metadata, OwnedTableColumns),
        of_a_version("projection_shard", ShardColumns),
        of_a_version("projection_worker", WorkerColumns),
        of_a_version("projection_parked", ParkedColumns),
        of_a_version("projection_skipped", SkippedColumns),
        of_a_version("projection_followed_log", FollowedLogColumns),
    )


@declared_once
def command_executions(schema: str, /) -> Table[ExecutionColumns]:
    """Return the table of executed commands in ``schema``."""
    return Table("command_execution", library_metadata(schema), ExecutionColumns)


@declared_once
def outbox_table(schema: str, /) -> Table[OutboxColumns]:
    """Return the table of messages in ``schema``."""
    return Table("outbox", library_metadata(schema), OutboxColumns)
