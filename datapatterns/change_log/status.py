"""How logs grow, for whom, and what keeps their space."""

from dataclasses import dataclass

from sqlalchemy import Column, Connection, func, select, table, text

from datapatterns.change_log.capture_names import batches_name, rows_name
from datapatterns.change_log.consuming import current_snapshot
from datapatterns.change_log.explaining import capture_obstacle
from datapatterns.change_log.identity import database_identity, timeline
from datapatterns.change_log.lagging import count_pending, followed_logs
from datapatterns.change_log.locking import hold_logs
from datapatterns.change_log.schema import Xid8, change_log_tables
from datapatterns.change_log.shapes import capture_changed
from datapatterns.change_log.snapshots import Xid

# Without pg_read_all_stats a role sees all of its own sessions alone.
_OLDEST = text("""
SELECT held.* FROM (
    SELECT pid, NULL AS gid, backend_xid::text::bigint AS writer,
           greatest(age(backend_xid), age(backend_xmin)) AS transactions,
           extract(epoch FROM clock_timestamp() - xact_start) AS seconds
    FROM pg_catalog.pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
      AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)
    UNION ALL
    SELECT NULL, gid, transaction::text::bigint, age(transaction),
           extract(epoch FROM clock_timestamp() - prepared)
    FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()) AS held
ORDER BY held.transactions DESC, held.seconds DESC NULLS LAST LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """How far a consumer is behind.

    Attributes:
        name: Its name.
        kind: What it is.
        is_foreign: Whether its snapshot speaks of another database; then only `rebase` helps.
        has_switched: Whether the server is on another timeline than when it was last advanced.
        must_rebuild: Whether it has to read everything anew.
        restart_reason: Why it was told to begin anew, if it was and has not yet.
        pending_rows: How many changes it has to take in, counted up to a limit.
        behind_seconds: 0 if nothing is pending, else the time since it was last advanced, or
            registered: at most so long has the oldest of them been waiting.
    """

    name: str
    kind: str
    is_foreign: bool
    has_switched: bool
    must_rebuild: bool
    restart_reason: str | None
    pending_rows: int
    behind_seconds: float


@dataclass(frozen=True, slots=True)
class LogStatus:
    """How a log has grown.

    Attributes:
        log_name: Its name in the library's schema.
        table: The captured table.
        rows: How many changes it holds, counted up to a limit.
        size_bytes: What it takes on disk, with its indexes. Collected rows leave room for others.
        held_back_by: Who has the most of these still to take in; None if all is garbage.
        obstacle: Which changes of the table go unlogged, and what to do; None if none do.
    """

    log_name: str
    table: str
    rows: int
    size_bytes: int
    held_back_by: str | None
    obstacle: str | None


@dataclass(frozen=True, slots=True)
class OldestTransaction:
    """What has been open for longest: VACUUM makes no room of what was collected since.

    Attributes:
        pid: The session's process, None for a prepared transaction.
        gid: The name of a prepared transaction.
        xid: Its id, None if it only reads.
        seconds: How long it has been open, or prepared; None if the role may not see that.
    """

    pid: int | None
    gid: str | None
    xid: Xid | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ChangeLogStatus:
    """How the logs of a schema stand.

    Attributes:
        logs: Each log, by its name.
        consumers: Each consumer, by its name.
        oldest_transaction: Of those in this database that the role may see.
    """

    logs: dict[str, LogStatus]
    consumers: dict[str, ConsumerStatus]
    oldest_transaction: OldestTransaction | None


def read_status(conn: Connection, *, schema: str, limit: int) -> ChangeLogStatus:
    """Return how the logs stand; rows are counted up to ``limit`` for each log and consumer.

    Raises:
        SnapshotOutdatedError: A table was released after the transaction's snapshot, above READ
            COMMITTED; begin again.
    """
    hold_logs(conn, schema=schema)
    found = [
        _consumer_status(conn, name, log_names, schema=schema, limit=limit)
        for name, log_names in followed_logs(conn, schema=schema).items()
    ]
    consumers = {each.name: each for each in found if each is not None}
    captured = change_log_tables(schema).captured
    logs = {
        row.log_name: LogStatus(
            row.log_name,
            f"{row.table_schema}.{row.table_name}",
            _count_rows(conn, row.log_name, schema=schema, limit=limit),
            _size_bytes(conn, row.log_name, schema=schema),
            _held_back_by(conn, row.log_name, schema=schema, limit=limit),
            capture_obstacle(conn, row.log_name, schema=schema),
        )
        for row in conn.execute(select(captured).order_by(captured.c.log_name)).all()
    }
    return ChangeLogStatus(logs, consumers, _oldest_transaction(conn))


def _consumer_status(
    conn: Connection, name: str, log_names: list[str], *, schema: str, limit: int
) -> ConsumerStatus | None:
    """Return how far it is behind; None if it was forgotten meanwhile."""
    consumers = change_log_tables(schema).consumers
    since = func.coalesce(consumers.c.advanced_at, consumers.c.registered_at)
    row = conn.execute(
        select(
            consumers,
            (consumers.c.timeline != timeline).is_(True).label("has_switched"),
            capture_changed(name, schema=schema).label("has_changed"),
            func.extract("epoch", func.statement_timestamp() - since).label("age"),
        ).where(consumers.c.name == name)
    ).one_or_none()
    if row is None:
        return None
    here = database_identity(conn)
    is_foreign = (row.system_identifier, row.database_oid) != (
        here.system_identifier,
        here.database_oid,
    )
    pending = 0 if is_foreign else count_pending(conn, name, log_names, schema=schema, limit=limit)
    return ConsumerStatus(
        name=name,
        kind=row.kind,
        is_foreign=is_foreign,
        has_switched=row.has_switched,
        must_rebuild=not row.populated or row.has_changed,
        restart_reason=row.restart_reason,
        pending_rows=pending,
        behind_seconds=float(row.age) if pending else 0.0,
    )


def _count_rows(conn: Connection, log_name: str, *, schema: str, limit: int) -> int:
    rows = select(Column("change_xid", Xid8)).select_from(table(log_name, schema=schema))
    counted = select(func.count()).select_from(rows.limit(limit).subquery())
    return conn.execute(counted).scalar_one()


def _size_bytes(conn: Connection, log_name: str, *, schema: str) -> int:
    tables = [func.to_regclass(f"{schema}.{part(log_name)}") for part in (rows_name, batches_name)]
    sizes = [func.pg_total_relation_size(table) for table in tables]
    return int(conn.execute(select(sizes[0] + sizes[1])).scalar_one())


def _held_back_by(conn: Connection, log_name: str, *, schema: str, limit: int) -> str | None:
    tables = change_log_tables(schema)
    names = conn.scalars(
        select(tables.subscriptions.c.consumer)
        .where(tables.subscriptions.c.log_name == log_name)
        .order_by(tables.subscriptions.c.consumer)
    ).all()
    pending = {
        name: count_pending(conn, name, [log_name], schema=schema, limit=limit) for name in names
    }
    return max((name for name in names if pending[name]), key=pending.__getitem__, default=None)


def _oldest_transaction(conn: Connection) -> OldestTransaction | None:
    row = conn.execute(_OLDEST).one_or_none()
    if row is None:
        return None
    now = conn.execute(select(current_snapshot)).scalar_one()
    xid = None if row.writer is None else now.full_xid(row.writer)
    seconds = None if row.seconds is None else float(row.seconds)
    return OldestTransaction(row.pid, row.gid, xid, seconds)
