"""The tables that invalidations and their relay live in."""

from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from datapatterns.change_log.schema import PgSnapshot, Xid8, change_log_tables
from datapatterns.sql.metadata import declared_once, library_metadata


@dataclass(frozen=True, slots=True)
class CacheTables:
    """The tables of cache-aside in one schema.

    Attributes:
        outbox: Which entries a transaction made obsolete; it commits with the writes.
        target: One row for each Redis: up to where it has been told, and what its keys begin with.
        capture: Which captured tables a relay follows, and what it forgets when they change.
    """

    outbox: Table
    target: Table
    capture: Table


@declared_once
def cache_tables(schema: str, /) -> CacheTables:
    """Return the tables in ``schema``."""
    metadata = library_metadata(schema)
    outbox = Table(
        "cache_outbox",
        metadata,
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column(
            "xid",
            Xid8,
            nullable=False,
            index=True,
            server_default=text("pg_current_xact_id()"),
        ),
        Column(
            "created_at",
            DateTime(timezone=True),
            nullable=False,
            server_default=text("clock_timestamp()"),
        ),
        Column("cache_keys", ARRAY(Text), nullable=False),
        CheckConstraint("cardinality(cache_keys) > 0", name="cache_keys_given"),
    )
    target = Table(
        "cache_target",
        metadata,
        Column("name", Text, primary_key=True),
        Column("generation", Uuid, nullable=False, server_default=text("gen_random_uuid()")),
        Column("identity", Text, nullable=False),
        Column(
            "snapshot", PgSnapshot, nullable=False, server_default=text("pg_current_snapshot()")
        ),
        Column(
            "relayed_at",
            DateTime(timezone=True),
            nullable=False,
            server_default=text("clock_timestamp()"),
        ),
    )
    log = change_log_tables(schema)
    capture = Table(
        "cache_capture",
        metadata,
        Column(
            "consumer", Text, ForeignKey(log.consumers.c.name, ondelete="CASCADE"), primary_key=True
        ),
        Column("log_name", Text, ForeignKey(log.captured.c.log_name), primary_key=True),
        Column("table_tag", Text, primary_key=True),
        Column("key_columns", ARRAY(Text), nullable=False),
        Column("tag_columns", ARRAY(Text), nullable=False),
        Column("caches", ARRAY(Text), nullable=False),
        Index(None, "log_name"),
    )
    return CacheTables(outbox, target, capture)
