"""In which order locks are taken by whoever changes what is captured.

All of them take turns, so two never wait for each other, whatever they do to how many tables. The
turn comes first; then the tables, by their names, and all of them before any log: writers read
logs as well, by what is current as of now. Then the rows that say what is captured, by the same
names; a log's view, and its tables. Consumers and subscriptions, which refreshers hold while they
read logs, come last.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from enum import IntEnum
from typing import Final

from psycopg import sql
from psycopg.errors import DeadlockDetected, LockNotAvailable, UndefinedTable
from sqlalchemy import ColumnElement, Connection, func, select, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from datapatterns.change_log.batch_statements import as_written
from datapatterns.change_log.inspecting import locking_order
from datapatterns.change_log.schema import change_log_tables
from datapatterns.errors import MigrationBlockedError, SnapshotOutdatedError
from datapatterns.sql.composing import execute


class TableLock(IntEnum):
    """What a table is held against: writers, or readers as well, as where triggers are dropped."""

    WRITERS = 1
    EVERYBODY = 2


TRIES: Final = 20
"""So often are locks on tables given back."""

_PATIENCE: Final = 0.5
"""For that share of ``deadlock_timeout`` is a lock waited for until then."""

_TIMEOUTS = text(
    "SELECT current_setting('lock_timeout'), setting::float"
    " FROM pg_catalog.pg_settings WHERE name = 'deadlock_timeout'"
)
_MODES = {
    TableLock.WRITERS: sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE"),
    TableLock.EVERYBODY: sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE"),
}


def take_turn(conn: Connection, *, schema: str, skip_locked: bool = False) -> bool:
    """Let nobody else change what is captured until the transaction ends; return whether it is so.

    First of all, as long as nothing else is locked. The transaction gets no id by it.

    Args:
        conn: A connection in a transaction.
        schema: Where the library's tables live.
        skip_locked: Return False if somebody else is at it, instead of waiting.
    """
    digest = hashlib.sha256(f"datapatterns capture of {schema}".encode())
    key = int.from_bytes(digest.digest()[:8], "big", signed=True)
    if skip_locked:
        return bool(conn.scalar(select(func.pg_try_advisory_xact_lock(key))))
    conn.execute(select(func.pg_advisory_xact_lock(key)))
    return True


def hold_tables(conn: Connection, wanted: Mapping[str, TableLock], *, schema: str) -> None:
    """Take the turn and lock tables in the order of their names; leave out what is gone.

    Whoever writes several in another order may meet this half-way. Then this gives back what it
    has before PostgreSQL looks for deadlocks, so that it ends no writer, and begins again; a few
    times, or else somebody who has a table and waits for the turn would never be told.

    Args:
        conn: A connection in a transaction. With a ``lock_timeout`` of its own nothing is tried
            twice: that passes, or it does not.
        wanted: What each is held against, by its name in SQL, quoted and with its schema. Their
            partitions are locked, too.
        schema: Where the library's tables live.

    Raises:
        MigrationBlockedError: PostgreSQL has ended a deadlock here; begin the transaction again.
    """
    own, deadlock_milliseconds = conn.execute(_TIMEOUTS).one()
    for _ in range(TRIES if own == "0" else 0):
        try:
            with conn.begin_nested():
                # For as long as it takes: whoever queues anew for it is the last again.
                take_turn(conn, schema=schema)
                patience = str(max(1, int(deadlock_milliseconds * _PATIENCE)))
                conn.execute(select(func.set_config("lock_timeout", patience, True)))
                _hold_tables(conn, wanted)
                conn.execute(select(func.set_config("lock_timeout", own, True)))
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
        else:
            return
    began = time.monotonic()
    try:
        take_turn(conn, schema=schema)
        _hold_tables(conn, wanted)
    except OperationalError as error:
        if not isinstance(error.orig, DeadlockDetected):
            raise
        holder = "somebody waits for this transaction and has what it needs, such as who detaches"
        holder += " a partition CONCURRENTLY or migrates as well"
        raise MigrationBlockedError(holder, waited_seconds=time.monotonic() - began) from error


def _hold_tables(conn: Connection, wanted: Mapping[str, TableLock]) -> None:
    for name in sorted(wanted, key=locking_order):
        if conn.scalar(select(func.to_regclass(name))) is not None:
            execute(conn, _MODES[wanted[name]].format(as_written(name)))


def by_table(schema: str) -> tuple[ColumnElement[str], ...]:
    """Return what captured tables are sorted by, in whatever language the database sorts."""
    captured = change_log_tables(schema).captured.c
    return captured.table_schema.collate("C"), captured.table_name.collate("C")


def hold_logs(conn: Connection, *, schema: str) -> None:
    """Lock all logs as reading does, before any is read: nobody takes them, or columns, away.

    In the order in which others lock them, whoever's changes are then looked at first.

    Args:
        conn: A connection in a transaction.
        schema: Where the library's tables live.

    Raises:
        SnapshotOutdatedError: A table was released after the transaction's snapshot, above READ
            COMMITTED; begin again.
    """
    missed: Sequence[str] = ()
    while names := _log_names(conn, schema):
        looks = (
            sql.SQL("SELECT FROM {} WHERE false").format(sql.Identifier(schema, name))
            for name in names
        )
        try:
            with nullcontext() if commits_each(conn) else conn.begin_nested():
                execute(conn, sql.SQL(" UNION ALL ").join(looks))
        except ProgrammingError as error:
            if not isinstance(error.orig, UndefinedTable):
                raise
            # Who released one meanwhile is done; the next list is without it.
            if names == missed:
                raise SnapshotOutdatedError("what is captured") from error
            missed = names
        else:
            return


def commits_each(conn: Connection) -> bool:
    """Return whether each statement is a transaction, of which nothing is held in the next."""
    driver = conn.connection.driver_connection
    return driver is not None and bool(driver.autocommit)


def _log_names(conn: Connection, schema: str) -> Sequence[str]:
    captured = change_log_tables(schema).captured.c
    return conn.scalars(select(captured.log_name).order_by(*by_table(schema))).all()
