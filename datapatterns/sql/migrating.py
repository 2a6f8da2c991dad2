"""Bring the library's tables to a revision; the only way they are ever created."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

from alembic import command
from alembic.config import Config
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import BigInteger, Connection, bindparam, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import CreateSchema

import datapatterns_migrations
from datapatterns.errors import MigrationBlockedError
from datapatterns.failpoints import failpoint
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema
from datapatterns.sql.migration_status import (
    BASE,
    MigrationStatus,
    Revision,
    migration_status,
    resolved_revision,
)
from datapatterns.sql.server import check_server, check_writable

TURN_WAIT_SECONDS = 60.0
"""How long a migration waits for another one in the same schema."""

TABLE_LOCK_SECONDS = 5.0
"""How long a statement of a migration waits for a table; what waits makes others wait, too."""

LONGEST_MILLISECONDS = 2**31 - 1
"""The longest time that a PostgreSQL setting can hold."""


def upgrade(
    conn: Connection,
    revision: str = "head",
    *,
    schema: str = DEFAULT_SCHEMA,
    wait_seconds: float = TURN_WAIT_SECONDS,
) -> tuple[Revision, ...]:
    """Upgrade the library's tables in ``schema``, in the caller's transaction.

    Returns the revisions that ran, oldest first; tables that are there or beyond stay as they are.

    One migration at a time: a second one waits for the first to end, and then finds nothing
    left to do. The lock belongs to the transaction, so it works through PgBouncer in
    transaction mode, too.

    Raises:
        MigrationBlockedError: Another migration went on for longer than ``wait_seconds``.
        SchemaManagedElsewhereError: An application's own Alembic environment migrates them.
        SchemaOccupiedError: The schema holds tables of somebody else.
        ServerTooOldError: The server is older than PostgreSQL 14.
        UnknownRevisionError: A newer version of the library migrated them, or the request is
            for a revision that does not exist.
    """
    status = _begin(conn, schema=schema, wait_seconds=wait_seconds)
    planned = status.steps_up(revision)
    if not planned:
        return ()
    with _table_locks(conn):
        if not conn.scalar(select(func.to_regnamespace(schema).is_not(None))):
            # A role that may not create schemas can still work in one that was made for it.
            conn.execute(CreateSchema(schema))
        config = _config(schema, conn)
        _count_as_recorded(config, status)
        failpoint("migration.begun")
        command.upgrade(config, revision)
        failpoint("migration.revised")
    return planned


def downgrade(
    conn: Connection,
    revision: str,
    *,
    schema: str = DEFAULT_SCHEMA,
    wait_seconds: float = TURN_WAIT_SECONDS,
) -> tuple[Revision, ...]:
    """Take the library's tables in ``schema`` back to ``revision``, with all data in them.

    ``base`` leaves an empty schema. Returns the revisions that were undone, newest first.
    Raises the same errors as `upgrade`.
    """
    status = _begin(conn, schema=schema, wait_seconds=wait_seconds)
    planned = status.steps_down(revision)
    if not planned:
        return ()
    with _table_locks(conn):
        config = _config(schema, conn)
        _count_as_recorded(config, status)
        command.downgrade(config, revision)
    return planned


def migration_sql(
    revision: str = "head", *, start: str = "base", schema: str = DEFAULT_SCHEMA
) -> str:
    """Return the SQL that takes the tables in ``schema`` from ``start`` to ``revision``.

    It is one transaction, for a person or a tool that runs SQL without this library; it
    goes down where ``revision`` is older than ``start``. No database is asked.
    """
    buffer = StringIO()
    config = _config(schema, None, buffer)
    config.attributes["datapatterns_preamble"] = [
        f"SELECT pg_advisory_xact_lock({turn_key(schema)})",
        f"CREATE SCHEMA IF NOT EXISTS {schema}",
    ]
    here = MigrationStatus(schema, resolved_revision(start), None)
    migrate = command.downgrade if here.steps_down(revision) else command.upgrade
    migrate(config, f"{start}:{revision}", sql=True)
    return buffer.getvalue()


def turn_key(schema: str) -> int:
    """Return the key of the advisory lock that migrations of ``schema`` take turns by."""
    digest = hashlib.sha256(f"datapatterns migrations of {schema}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _begin(conn: Connection, *, schema: str, wait_seconds: float) -> MigrationStatus:
    """Take the turn and return where the tables stand, if they are ours to migrate."""
    checked_schema(schema)
    check_server(conn)
    check_writable(conn)
    _take_turn(conn, schema, wait_seconds)
    status = migration_status(conn, schema=schema)
    status.refuse_unless_ours()
    return status


def _take_turn(conn: Connection, schema: str, wait_seconds: float) -> None:
    key = turn_key(schema)
    try:
        # In a savepoint, so that the caller's transaction survives to ask who holds the lock.
        with conn.begin_nested(), _limits(conn, lock_seconds=wait_seconds):
            conn.execute(select(func.pg_advisory_xact_lock(key)))
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        raise MigrationBlockedError(_holder(conn, key), waited_seconds=wait_seconds) from error


def _holder(conn: Connection, key: int) -> str:
    found = conn.execute(
        text(
            "SELECT l.pid, a.application_name, a.xact_start"
            " FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)"
            " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
            " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND l.classid::bigint = (:key >> 32) & x'ffffffff'::bigint"
            " AND l.objid::bigint = :key & x'ffffffff'::bigint"
        ).bindparams(bindparam("key", key, BigInteger))
    ).one_or_none()
    if found is None:
        return "another migration was under way"
    since = f" since {found.xact_start:%Y-%m-%d %H:%M:%S%z}" if found.xact_start else ""
    name = f" ({found.application_name})" if found.application_name else ""
    return f"another migration is under way in session {found.pid}{name}{since}"


def _count_as_recorded(config: Config, status: MigrationStatus) -> None:
    """Let Alembic start from where the record says that the tables stand.

    Its version table may say otherwise: emptied by hand, left out of a dump, or still at the
    revision at which an application's own environment took over. Then it would do nothing, or
    run what has run.
    """
    command.stamp(config, status.revision or BASE, purge=True)


@contextmanager
def _table_locks(conn: Connection) -> Iterator[None]:
    """Wait a little for each table, and say so when that was not enough."""
    try:
        with _limits(conn, lock_seconds=TABLE_LOCK_SECONDS):
            yield
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable | DeadlockDetected):
            raise
        holder = "another session uses a table that the migration changes"
        raise MigrationBlockedError(holder, waited_seconds=TABLE_LOCK_SECONDS) from error


@contextmanager
def _limits(conn: Connection, *, lock_seconds: float) -> Iterator[None]:
    """Set this transaction's limits on waiting; afterwards the caller has its own back."""
    # A role's statement_timeout is meant for its everyday queries, not for building an index.
    # A lock_timeout of 0 would be none at all.
    milliseconds = round(min(max(lock_seconds * 1000, 1), LONGEST_MILLISECONDS))
    limits = {"lock_timeout": f"{milliseconds}ms", "statement_timeout": "0"}
    found = {name: conn.scalar(select(func.current_setting(name))) for name in limits}
    _set(conn, limits)
    yield
    _set(conn, found)


def _set(conn: Connection, settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        conn.execute(select(func.set_config(name, value, True)))


def _config(schema: str, conn: Connection | None, buffer: StringIO | None = None) -> Config:
    config = Config(output_buffer=buffer)
    config.set_main_option(
        "script_location", str(Path(datapatterns_migrations.__file__).parent).replace("%", "%%")
    )
    config.attributes["connection"] = conn
    config.attributes["datapatterns_schema"] = checked_schema(schema)
    return config
