"""Tables of the index table pattern, and the table that each index is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from datapatterns.change_log.schema import Instant, Xid8
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.sql.metadata import declared_once, library_metadata


@dataclass(frozen=True, slots=True)
class IndexTables:
    """What is known of the indexes in one schema.

    Attributes:
        index_table: One row for each index: its definition's fingerprint and its state.
        index_backfill: How far the building of each has come.
        index_change: Keys of indexes over shards that transactions which are not committed yet
            have changed; nobody sees a row of another's.
        index_conflict: Why the building of a unique one has failed: two rows with one key.
    """

    index_table: Table
    index_backfill: Table
    index_change: Table
    index_conflict: Table


@declared_once
def index_tables(schema: str, /) -> IndexTables:
    """Return the pattern's tables in ``schema``."""
    metadata = library_metadata(schema)
    index_table = Table(
        "index_table",
        metadata,
        Column("index_id", Integer, Identity(always=True), primary_key=True),
        Column("name", Text, nullable=False),
        Column("base_table", Text, nullable=False),
        Column("is_unique", Boolean, nullable=False),
        Column("mode", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("fingerprint", Text, nullable=False),
        Column("blueprint", JSONB),
        Column("as_of", Instant),
        Column("failure", Text),
        UniqueConstraint("name"),
        CheckConstraint("mode IN ('local', 'reserve', '2pc', 'async')", "mode"),
        CheckConstraint(
            "state IN ('building', 'verifying', 'ready', 'failed', 'dropping')", "state"
        ),
    )
    index_backfill = Table(
        "index_backfill",
        metadata,
        Column(
            "index_id",
            Integer,
            ForeignKey(index_table.c.index_id, ondelete="CASCADE"),
            primary_key=True,
        ),
        Column("after_pk", JSONB),
        Column("rows_done", BigInteger, nullable=False, server_default=text("0")),
        Column("done", Boolean, nullable=False, server_default=false()),
        Column("worker", Uuid),
        Column("lease_until", Instant),
        Column("rows_expected", BigInteger),
        CheckConstraint("rows_done >= 0", "counted"),
        CheckConstraint("(worker IS NULL) = (lease_until IS NULL)", "leased"),
    )
    index_change = Table(
        "index_change",
        metadata,
        Column("change_id", BigInteger, Identity(always=True), primary_key=True),
        Column(
            "change_xid",
            Xid8,
            nullable=False,
            server_default=text("pg_current_xact_id()"),
            index=True,
        ),
        Column("index_name", Text, nullable=False),
        Column("fingerprint", Text, nullable=False),
        Column("gone", JSONB, nullable=False),
        Column("come", JSONB, nullable=False),
        Column("touched", JSONB, nullable=False),
        prefixes=["UNLOGGED"],
    )
    index_conflict = Table(
        "index_conflict",
        metadata,
        Column(
            "index_id",
            Integer,
            ForeignKey(index_table.c.index_id, ondelete="CASCADE"),
            primary_key=True,
        ),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("key", JSONB, nullable=False),
        Column("base_pk", JSONB, nullable=False),
        Column("holder_pk", JSONB, nullable=False),
        Column("found_at", Instant, nullable=False, server_default=func.statement_timestamp()),
    )
    return IndexTables(index_table, index_backfill, index_change, index_conflict)


@declared_once
def entry_table(definition: IndexDefinition) -> Table:
    """Return the index itself: a row for each indexed row of the base table."""
    return _table(definition, definition.name)


@declared_once
def guard_view(definition: IndexDefinition) -> Table:
    """Return the view that computes what the index should hold."""
    return _table(definition, f"{definition.name}_guard")


def _table(definition: IndexDefinition, name: str) -> Table:
    # Not among the library's own tables: these belong to the application's declarations.
    columns: Mapping[str, Any] = definition.projection(definition.base)
    return Table(
        name,
        MetaData(),
        *(Column(own, expression.type) for own, expression in columns.items()),
        schema=definition.schema,
    )
