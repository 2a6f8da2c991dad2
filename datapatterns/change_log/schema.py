"""Tables of the change log, and PostgreSQL's types for transactions."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    extract,
    false,
    func,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB, OID, TIMESTAMP
from sqlalchemy.types import TypeDecorator, UserDefinedType

from datapatterns.change_log.snapshots import Snapshot, Xid
from datapatterns.sql.metadata import declared_once, library_metadata

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class _Named(UserDefinedType[str]):
    """A type that PostgreSQL reads and writes as text."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: object) -> str:
        return self.name


class Xid8(TypeDecorator[Xid]):
    """A transaction id of 64 bits."""

    impl = _Named("xid8")
    cache_ok = True

    def process_bind_param(self, value: Xid | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Write the id as PostgreSQL does."""
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Xid | None:  # noqa: ARG002
        """Read the id as a number."""
        return None if value is None else Xid(int(value))


class PgSnapshot(TypeDecorator[Snapshot]):
    """Which transactions a statement could see."""

    impl = _Named("pg_snapshot")
    cache_ok = True

    def process_bind_param(self, value: Snapshot | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Write the snapshot as PostgreSQL does."""
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Snapshot | None:  # noqa: ARG002
        """Read the snapshot as a value."""
        return None if value is None else Snapshot.parse(value)


class Instant(TypeDecorator[datetime]):
    """A moment, read as a number: the driver reads dates of a server or session in ISO alone."""

    impl = TIMESTAMP(timezone=True)
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Ask for seconds since 1970, exact to the microsecond."""
        return type_coerce(extract("epoch", column), self)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ANN401, ARG002 -- a Decimal, which the base takes for a datetime
        """Return the moment in UTC."""
        return None if value is None else _EPOCH + timedelta(microseconds=int(value * 1_000_000))


statement_time = func.statement_timestamp(type_=Instant)
"""When the statement began."""


@dataclass(frozen=True, slots=True)
class ChangeLogTables:
    """The tables of the change log in one schema; each captured table has a log of its own."""

    consumers: Table
    captured: Table
    subscriptions: Table


@declared_once
def change_log_tables(schema: str, /) -> ChangeLogTables:
    """Return the tables of the change log in ``schema``."""
    metadata = library_metadata(schema)
    consumers = Table(
        "change_consumer",
        metadata,
        Column("name", Text, primary_key=True),
        Column("kind", Text, nullable=False),
        Column("snapshot", PgSnapshot, nullable=False),
        Column("populated", Boolean, nullable=False, server_default=false()),
        Column("system_identifier", BigInteger, nullable=False),
        Column("database_oid", OID, nullable=False),
        Column(
            "registered_at",
            Instant,
            nullable=False,
            server_default=func.statement_timestamp(),
        ),
        Column("advanced_at", Instant),
        Column("timeline", Integer),
        Column("restart_reason", Text),
    )
    captured = Table(
        "captured_table",
        metadata,
        Column("log_name", Text, primary_key=True),
        Column("table_schema", Text, nullable=False),
        Column("table_name", Text, nullable=False),
        Column("allows_row_security", Boolean, nullable=False, server_default=false()),
        UniqueConstraint("table_schema", "table_name"),
    )
    subscriptions = Table(
        "change_subscription",
        metadata,
        Column(
            "consumer", Text, ForeignKey(consumers.c.name, ondelete="CASCADE"), primary_key=True
        ),
        Column("log_name", Text, ForeignKey(captured.c.log_name), primary_key=True),
        Column("shape", Text),
        Column("partitions", JSONB(none_as_null=True)),
        Index(None, "log_name"),
    )
    return ChangeLogTables(consumers, captured, subscriptions)
