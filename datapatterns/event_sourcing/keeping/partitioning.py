"""Partition the events by position, online, and go back.

What it brings: indexes of the newest events that stay small enough for memory, vacuum and
reindexing in parts, old partitions that are dropped once the archive has their events. What it
costs: a load looks into every partition's index, and ``(stream_id, version)`` is unique only
within each partition. Across them the row of the stream guarantees it, which every append raises;
`Partitioning.duplicates` looks whether that held.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from psycopg import sql
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Engine,
    Executable,
    Integer,
    Select,
    Text,
    bindparam,
    column,
    func,
    select,
)
from sqlalchemy.exc import OperationalError

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import MigrationBlockedError
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore
from datapatterns.sql.composing import execute
from datapatterns.sql.server import check_writable
from datapatterns.transactions import resuming

logger = logging.getLogger(__name__)

PARTITION_EVENTS: Final = 20_000_000
"""How many positions a partition holds, unless you choose: some gigabytes of usual events."""

_PARTITION_EVENTS_MAX: Final = 2**40
_HOLDER: Final = "other sessions use the table of events"


@dataclass(frozen=True, slots=True)
class Partition:
    """One part of the events.

    Attributes:
        name: Its table.
        first: The lowest position that belongs into it; None without a bound.
        last: The highest one; None without a bound.
        is_rest: It takes what no other takes: positions for which no partition was made in time,
            and events that came back from the archive after theirs was dropped.
    """

    name: str
    first: int | None
    last: int | None
    is_rest: bool


@dataclass(frozen=True, slots=True)
class Partitioning:
    """Turns the table of events into a partitioned one; the business of who owns it.

    Attributes:
        store: Whose events.
        clock: Waits between attempts to get a lock.
    """

    store: EventStore
    clock: Clock = SYSTEM_CLOCK

    def partition(
        self,
        engine: Engine,
        *,
        size: int = PARTITION_EVENTS,
        attempts: int = 20,
        lock_seconds: float = 1.0,
    ) -> bool:
        """Turn the table into its own first partition; return False if it is partitioned.

        Three transactions: a check on positions is added (a moment of a lock), validated (reads
        all events, while appends go on), and used as proof when the table changes (a moment of a
        lock). Until then, appends are refused from the bound on, which is at least ``size``
        positions away. Broken off, it can be begun again or taken back with `undo`.

        Args:
            engine: Leads to the database, as who owns the tables.
            size: How many positions each partition takes.
            attempts: How often to try to get a lock.
            lock_seconds: How long to wait for it each time; what waits lets others wait, too.

        Raises:
            MigrationBlockedError: Other transactions held the table all the time.
            ValueError: ``size`` or ``attempts`` is out of bounds.
        """
        if not 1 <= size <= _PARTITION_EVENTS_MAX or attempts < 1:
            raise ValueError("a partition takes at least 1 position, and it takes 1 attempt")
        # Whatever the engine's default: what others did until a lock was got must be seen.
        engine = engine.execution_options(isolation_level="READ COMMITTED")
        with engine.connect() as conn:
            if self.partitions(conn):
                return False
        bound = self._retried(engine, attempts, lock_seconds, lambda c: self._promise(c, size))
        with engine.connect() as conn, resuming(conn, "partitioning the events"):
            execute(conn, self._alter(sql.SQL("VALIDATE CONSTRAINT ck_event_bound")))
        statement = self._call("partition_events", bound, size)
        self._retried(engine, attempts, lock_seconds, lambda c: int(c.scalar(statement) or 0))
        logger.info("events are partitioned", extra={"bound": bound, "size": size})
        return True

    def extend(self, conn: Connection, *, ahead: int = 2, lock_seconds: float = 1.0) -> int:
        """Make partitions until ``ahead`` of them are empty; return how many were made.

        Call it now and then, from a worker with EXECUTE on ``extend_event_partitions``, in a
        transaction of its own. It waits for transactions that have read or written the rest, and
        who comes next waits behind it. Where it comes too late, events go into the rest.

        Args:
            conn: A connection in a transaction. The caller commits, soon.
            ahead: How many.
            lock_seconds: How long to wait for each lock; what waits lets others wait, too.

        Raises:
            MigrationBlockedError: Others held the table for longer. Roll back, and try again.
        """
        check_writable(conn)
        with self._patience(conn, lock_seconds):
            return int(conn.scalar(self._call("extend_event_partitions", ahead)) or 0)

    def drop_empty(self, conn: Connection, *, lock_seconds: float = 1.0) -> int:
        """Drop partitions that the log has passed and the archive has emptied; return how many.

        Appends and reads wait until the transaction ends. The newest partition stays.

        Raises:
            MigrationBlockedError: As `extend`.
        """
        check_writable(conn)
        with self._patience(conn, lock_seconds):
            return int(conn.scalar(self._call("drop_empty_event_partitions")) or 0)

    def undo(self, conn: Connection, *, lock_seconds: float = 1.0) -> None:
        """Make one table of it again, in the caller's transaction.

        Everybody waits until it ends: all events but those of the first partition are copied.

        Raises:
            MigrationBlockedError: As `extend`.
        """
        check_writable(conn)
        with self._patience(conn, lock_seconds):
            execute(conn, self._alter(sql.SQL("DROP CONSTRAINT IF EXISTS ck_event_bound")))
            conn.execute(self._call("unpartition_events"))

    def partitions(self, conn: Connection) -> list[Partition]:
        """Return the partitions by position, the rest last; none if it is one table."""
        rows: Iterable[Any] = conn.execute(_list_statement(self.store.schema))
        return [
            Partition(name, lower, None if upper is None else upper - 1, is_rest)
            for name, lower, upper, is_rest in rows
        ]

    def duplicates(self, conn: Connection, *, limit: int = 10) -> list[tuple[int, int]]:
        """Return at most ``limit`` pairs of stream number and version that occur twice.

        It reads all events, archived ones too. There is none unless somebody wrote past the
        library.
        """
        events = event_tables(self.store.schema).all_events
        rows = conn.execute(
            select(events.c.stream_id, events.c.version)
            .group_by(events.c.stream_id, events.c.version)
            .having(func.count() > 1)
            .limit(limit)
        )
        return [(stream_id, version) for stream_id, version in rows]

    def _promise(self, conn: Connection, size: int) -> int:
        """Refuse positions from a bound on that is far enough away; return the bound."""
        drawn = conn.scalar(
            select(
                func.pg_sequence_last_value(
                    event_tables(self.store.schema).position_sequence, type_=BigInteger
                )
            )
        )
        bound = ((drawn or 0) // size + 2) * size
        execute(
            conn,
            self._alter(
                sql.SQL(
                    "DROP CONSTRAINT IF EXISTS ck_event_bound, ADD CONSTRAINT ck_event_bound"
                    " CHECK (position < {}) NOT VALID"
                ).format(sql.Literal(bound))
            ),
        )
        return bound

    def _alter(self, change: sql.Composable) -> sql.Composed:
        table = sql.Identifier(self.store.schema, "event")
        return sql.SQL("ALTER TABLE {} {}").format(table, change)

    def _call(self, name: str, *arguments: int) -> Select[Any]:
        types = {"extend_event_partitions": Integer()}
        values = [
            bindparam(f"a{place}", value, types.get(name, BigInteger()))
            for place, value in enumerate(arguments)
        ]
        function = event_tables(self.store.schema).function(name, *values, returns=Integer())
        return select(function)

    @contextmanager
    def _patience(self, conn: Connection, lock_seconds: float) -> Iterator[None]:
        """Wait no longer than that for a lock, and leave the caller's setting as it was."""
        before = conn.scalar(select(func.current_setting("lock_timeout", type_=Text)))
        conn.execute(_lock_timeout(_milliseconds(lock_seconds)))
        try:
            yield
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            raise MigrationBlockedError(_HOLDER, waited_seconds=lock_seconds) from error
        conn.execute(_lock_timeout(str(before)))

    def _retried(
        self,
        engine: Engine,
        attempts: int,
        lock_seconds: float,
        step: Callable[[Connection], int],
    ) -> int:
        for attempt in range(1, attempts + 1):
            try:
                with engine.connect() as conn, resuming(conn, "partitioning the events"):
                    conn.execute(_lock_timeout(_milliseconds(lock_seconds)))
                    return step(conn)
            except OperationalError as error:
                if not isinstance(error.orig, LockNotAvailable | DeadlockDetected):
                    raise
                if attempt == attempts:
                    waited = lock_seconds * attempts
                    raise MigrationBlockedError(_HOLDER, waited_seconds=waited) from error
            self.clock.sleep(lock_seconds)
        raise AssertionError  # the last attempt returns or raises


def _milliseconds(lock_seconds: float) -> str:
    return f"{max(1, round(lock_seconds * 1000))}ms"


def _lock_timeout(limit: str) -> Select[Any]:
    return select(func.set_config("lock_timeout", limit, True))


@cache
def _list_statement(schema: str) -> Executable:
    columns = (
        column("name", Text),
        column("lower_bound", BigInteger),
        column("upper_bound", BigInteger),
        column("is_rest", Boolean),
    )
    function = event_tables(schema).function("event_partition_list").table_valued(*columns)
    return select(*columns).select_from(function).order_by(columns[2].asc().nulls_last())
