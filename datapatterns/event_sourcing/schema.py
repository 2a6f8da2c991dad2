"""Tables of the event store."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    TableClause,
    Text,
    UniqueConstraint,
    Uuid,
    cast,
    column,
    func,
    table,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, REGCLASS, TIMESTAMP
from sqlalchemy.sql.functions import Function
from sqlalchemy.types import TypeEngine

from datapatterns.sql.functions import library_function
from datapatterns.sql.metadata import declared_once, library_metadata

_MOMENT = TIMESTAMP(timezone=True)
_ONE_CONTENT = "(codec = 0) = (data IS NOT NULL) AND (codec = 0) = (payload IS NULL)"


@dataclass(frozen=True, slots=True)
class EventTables:
    """The tables of one event store, and the functions that live beside them."""

    schema: str
    position: Sequence
    event_types: Table
    streams: Table
    events: Table
    tags: Table
    tag_gate: Table
    requests: Table
    archive: Table
    all_events: TableClause
    marks: Table
    snapshots: Table
    subject_keys: Table
    import_chunks: Table
    seals: Table
    purges: Table
    tombstones: Table

    @property
    def position_sequence(self) -> ColumnElement[Any]:
        """The sequence, as functions and system tables want it."""
        return cast(f"{self.schema}.{self.position.name}", REGCLASS)

    def function(
        self, name: str, *arguments: ColumnElement[Any], returns: TypeEngine[Any] | None = None
    ) -> Function[Any]:
        """Return a call of the function of that name that the migration made."""
        return library_function(self.schema, name, *arguments, returns=returns)


def _content() -> list[Column[Any]]:
    """Return the columns that hold what an event says; columns belong to one table each."""
    return [
        Column[Any]("data", JSON),
        Column[Any]("meta", JSON),
        Column[bytes]("payload", LargeBinary),
        Column[int]("codec", SmallInteger, nullable=False, server_default="0"),
        Column[list[str]]("tags", ARRAY(Text)),
    ]


@declared_once
def event_tables(schema: str, /) -> EventTables:
    """Return the tables of the event store in ``schema``."""
    metadata = library_metadata(schema)
    # A session that took positions in advance would draw them from below the fences of others:
    # CACHE 1 is what makes the position fence right, not a matter of taste.
    position = Sequence(
        "event_position",
        metadata=metadata,
        data_type=BigInteger,
        minvalue=0,
        start=0,
        cache=1,
        schema=schema,
    )
    return EventTables(
        schema=schema,
        position=position,
        event_types=Table(
            "event_type",
            metadata,
            Column("id", Integer, Identity(always=True), primary_key=True),
            Column[str]("name", Text, nullable=False),
            Column[int]("schema_version", Integer, nullable=False),
            Index("ix_event_type_name", "name", "schema_version"),
            CheckConstraint("schema_version > 0", "positive"),
        ),
        streams=Table(
            "stream",
            metadata,
            Column("id", BigInteger, Identity(always=True), primary_key=True),
            Column[int]("version", BigInteger, nullable=False),
            Column[datetime]("created_at", _MOMENT, nullable=False),
            Column[datetime]("last_at", _MOMENT, nullable=False),
            Column[str]("tenant", Text, nullable=False),
            Column[str]("category", Text, nullable=False),
            Column[str]("key", Text, nullable=False),
            Column[int]("first_version", BigInteger, nullable=False, server_default="1"),
            Column[datetime]("archived_at", _MOMENT),
            UniqueConstraint("tenant", "category", "key"),
            CheckConstraint("first_version BETWEEN 1 AND version", "first_version"),
            Index(
                "ix_stream_kept",
                "id",
                postgresql_where=text("archived_at IS NOT NULL OR first_version > 1"),
            ),
            postgresql_with={"fillfactor": 80},
        ),
        events=Table(
            "event",
            metadata,
            Column[int](
                "position",
                BigInteger,
                server_default=func.nextval(cast(f"{schema}.event_position", REGCLASS)),
                primary_key=True,
                autoincrement=False,
            ),
            Column[int]("stream_id", BigInteger, nullable=False),
            Column[int]("version", BigInteger, nullable=False),
            Column[datetime]("at", _MOMENT, nullable=False),
            Column[UUID]("event_id", Uuid, nullable=False),
            Column[int]("type_id", Integer, nullable=False),
            *_content(),
            UniqueConstraint("stream_id", "version"),
            CheckConstraint("version > 0", "positive"),
            CheckConstraint(_ONE_CONTENT, "codec"),
        ),
        tags=Table(
            "event_tag",
            metadata,
            Column[str]("tenant", Text),
            Column[str]("tag", Text),
            Column[int]("position", BigInteger),
            Column[int]("type_id", Integer, nullable=False),
            PrimaryKeyConstraint("tenant", "tag", "position", postgresql_include=["type_id"]),
        ),
        # Without columns or rows: its lock is all that is used.
        tag_gate=Table("tag_gate", metadata),
        requests=Table(
            "append_request",
            metadata,
            Column[UUID]("event_id", Uuid, primary_key=True),
            Column[int]("stream_id", BigInteger, nullable=False),
            Column[int]("version", BigInteger, nullable=False),
            Column[datetime]("recorded_at", _MOMENT, nullable=False),
            Index("ix_append_request_recorded_at", "recorded_at"),
        ),
        archive=Table(
            "event_archive",
            metadata,
            Column[int]("position", BigInteger, primary_key=True, autoincrement=False),
            Column[int]("stream_id", BigInteger, nullable=False),
            Column[int]("version", BigInteger, nullable=False),
            Column[datetime]("at", _MOMENT, nullable=False),
            Column[UUID]("event_id", Uuid, nullable=False),
            Column[int]("type_id", Integer, nullable=False),
            *_content(),
            UniqueConstraint("stream_id", "version"),
            CheckConstraint("version > 0", "positive"),
            CheckConstraint(_ONE_CONTENT, "codec"),
        ),
        # A view of both; Core joins it like a table, and no migration compares it.
        all_events=table(
            "event_all",
            column("position", BigInteger),
            column("stream_id", BigInteger),
            column("version", BigInteger),
            column("at", _MOMENT),
            column("event_id", Uuid),
            column("type_id", Integer),
            column("data", JSON),
            column("meta", JSON),
            column("payload", LargeBinary),
            column("codec", SmallInteger),
            column("tags", ARRAY(Text)),
            schema=schema,
        ),
        marks=Table(
            "mark",
            metadata,
            Column[bool]("one", Boolean, primary_key=True, server_default=true()),
            Column[int]("position", BigInteger, nullable=False),
            Column[datetime]("at", _MOMENT, nullable=False),
            CheckConstraint("one", "one"),
            postgresql_with={"fillfactor": 50},
        ),
        snapshots=Table(
            "snapshot",
            metadata,
            Column[int]("stream_id", BigInteger),
            Column[str]("aggregate", Text),
            Column[bytes]("fingerprint", LargeBinary),
            Column[int]("version", BigInteger),
            Column[int]("position", BigInteger, nullable=False),
            Column[datetime]("at", _MOMENT, nullable=False),
            Column[Any]("state", JSON),
            Column[bytes]("payload", LargeBinary),
            Column[int]("codec", SmallInteger, nullable=False, server_default="0"),
            Column[list[str]]("subjects", ARRAY(Text)),
            PrimaryKeyConstraint("stream_id", "aggregate", "fingerprint", "version"),
            CheckConstraint("version > 0", "positive"),
            CheckConstraint(_ONE_CONTENT.replace("data", "state"), "codec"),
            Index(
                "ix_snapshot_subjects",
                "subjects",
                postgresql_using="gin",
                postgresql_where=text("subjects IS NOT NULL"),
            ),
        ),
        subject_keys=Table(
            "subject_key",
            metadata,
            Column[str]("tenant", Text),
            Column[str]("subject", Text),
            Column[bytes]("wrapped_key", LargeBinary),
            Column[datetime](
                "created_at", _MOMENT, nullable=False, server_default=func.clock_timestamp()
            ),
            Column[datetime]("shredded_at", _MOMENT),
            PrimaryKeyConstraint("tenant", "subject"),
            CheckConstraint("(wrapped_key IS NULL) = (shredded_at IS NOT NULL)", "shredded"),
        ),
        import_chunks=Table(
            "import_chunk",
            metadata,
            Column[str]("source", Text),
            Column[int]("chunk", BigInteger),
            Column[int]("events", BigInteger, nullable=False),
            Column[bytes]("digest", LargeBinary, nullable=False),
            Column[datetime]("imported_at", _MOMENT, nullable=False, server_default=func.now()),
            PrimaryKeyConstraint("source", "chunk"),
        ),
        **_keeping(metadata),
    )


def _keeping(metadata: MetaData) -> dict[str, Table]:
    """Return what a hash chain and purges leave behind."""
    seals = Table(
        "event_seal",
        metadata,
        Column[int]("segment", BigInteger, primary_key=True, autoincrement=False),
        Column[int]("after_position", BigInteger, nullable=False, unique=True),
        Column[int]("last_position", BigInteger, nullable=False),
        Column[int]("events", BigInteger, nullable=False),
        Column[bytes]("digest", LargeBinary, nullable=False),
        Column[datetime](
            "sealed_at", _MOMENT, nullable=False, server_default=func.clock_timestamp()
        ),
    )
    purges = Table(
        "event_purge",
        metadata,
        Column("purge_id", BigInteger, Identity(always=True), primary_key=True),
        Column[int]("stream_id", BigInteger, nullable=False, index=True),
        Column[int]("first_version", BigInteger, nullable=False),
        Column[int]("last_version", BigInteger, nullable=False),
        Column[int]("events", BigInteger, nullable=False),
        Column[bytes]("digest", LargeBinary, nullable=False),
        Column[str]("reason", Text, nullable=False),
        Column[datetime](
            "purged_at", _MOMENT, nullable=False, server_default=func.clock_timestamp()
        ),
    )
    tombstones = Table(
        "event_tombstone",
        metadata,
        Column[int]("position", BigInteger, primary_key=True, autoincrement=False),
        Column[int]("stream_id", BigInteger, nullable=False),
        Column[int]("version", BigInteger, nullable=False),
        Column[int]("purge_id", BigInteger, ForeignKey(purges.c.purge_id), nullable=False),
        Column[bytes]("digest", LargeBinary, nullable=False),
    )
    return {"seals": seals, "purges": purges, "tombstones": tombstones}
