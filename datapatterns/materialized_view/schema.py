"""The table that lists the views of a schema."""

from sqlalchemy import (
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Table,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB

from datapatterns.change_log.schema import Instant, PgSnapshot, change_log_tables
from datapatterns.sql.metadata import declared_once, library_metadata


@declared_once
def materialized_views(schema: str, /) -> Table:
    """Return the table of views in ``schema``."""
    consumers = change_log_tables(schema).consumers
    return Table(
        "materialized_view",
        library_metadata(schema),
        Column("name", Text, primary_key=True),
        Column("consumer", Text, ForeignKey(consumers.c.name), nullable=False),
        Column("digest", Text, nullable=False),
        Column("strategy", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("sources", JSONB, nullable=False),
        Column("blueprint", JSONB, nullable=False),
        Column(
            "created_at",
            Instant,
            nullable=False,
            server_default=func.statement_timestamp(),
        ),
        Column("duration_seconds", Double),
        CheckConstraint("strategy IN ('counting', 'groups', 'rebuild')", "strategy"),
        UniqueConstraint("consumer"),
    )


@declared_once
def view_parents(schema: str, /) -> Table:
    """Return the table of which views of ``schema`` are built upon which."""
    views = materialized_views(schema)
    return Table(
        "view_parent",
        library_metadata(schema),
        Column("view", Text, ForeignKey(views.c.name, ondelete="CASCADE"), primary_key=True),
        Column("parent", Text, ForeignKey(views.c.name), primary_key=True),
        Column("snapshot", PgSnapshot),
        Column("as_of", Instant),
        CheckConstraint("view <> parent", "no_circle"),
        CheckConstraint("(snapshot IS NULL) = (as_of IS NULL)", "whole"),
        Index(None, "parent"),
    )
