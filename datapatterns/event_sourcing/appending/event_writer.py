"""Append by single statements: one round trip and one flush of the log for each append."""

import os
import threading
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from sqlalchemy import Connection, Engine

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import DataPatternsError, ServerUnavailableError
from datapatterns.event_sourcing.appending.batching import outgoing
from datapatterns.event_sourcing.appending.tag_query import Condition
from datapatterns.event_sourcing.appending.writing import SERVER, Writing, must_reconnect, writing
from datapatterns.event_sourcing.events import Appended, Expected, StreamId

if TYPE_CHECKING:
    from datapatterns.event_sourcing.store import EventStore

CONNECTIONS_MAX: Final = 100

CLOSED: Final = "the writer is closed; make another one"
_of_other_processes: Final[list[object]] = []
"""Kept, for what is collected says goodbye to the server."""


class EventWriter:
    """Makes each append a transaction of its own, in one round trip.

    For appends that stand alone: nothing else is written with them. It holds connections of the
    engine's pool, in autocommit mode, from the first append that needs one to `close`. Threads may
    share it.

    An append whose answer is lost is sent again, with the same ids, until it is known to have
    taken place, once. Close it, or use it as a context manager.

    Args:
        store: Where events go, and their types.
        engine: The primary.
        connections: At most so many appends at the same time; others wait.
        patience_seconds: For how long an append is sent again, and waits for a connection.
        clock: What waiting goes by.

    Raises:
        ValueError: A number is not positive.
    """

    def __init__(
        self,
        store: "EventStore",
        engine: Engine,
        *,
        connections: int = 4,
        patience_seconds: float = 10.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_writer(connections, patience_seconds)
        self._store = store
        self._contents = store.contents
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._closing = threading.Lock()
        self._closed = False
        # The one that was used last comes first: few are opened where few are needed. Who waits for
        # one takes a ticket, which costs a fifth of what a LifoQueue does.
        self._idle: list[_Line | None] = [None] * connections
        self._tickets: SimpleQueue[None] = SimpleQueue()
        for _ in range(connections):
            self._tickets.put(None)

    def append(
        self,
        stream: StreamId,
        events: Sequence[object],
        *,
        expected_version: int | Expected,
        metadata: Mapping[str, Any] | None = None,
        event_ids: Sequence[UUID] | None = None,
        unless: Condition | None = None,
    ) -> Appended:
        """Append ``events`` to ``stream``, and commit; otherwise as `EventStore.append`.

        With `ANY` and `EXISTS` it leaves a row in ``append_request``, by which it recognises
        itself; see `forget_append_requests`.

        Raises: as `EventStore.append`; and

            IsolationLevelError: An event has personal fields, whose keys only a transaction holds.
            OutcomeUnknownError: No answer came in time. Send it again with the ids that the error
                has.
            ReadOnlyServerError: The server is a standby.
            ServerUnavailableError: It could not be sent in time, or no connection was free.
        """
        begun = writing(
            stream,
            events,
            expected_version=expected_version,
            metadata=metadata,
            event_ids=event_ids,
            unless=unless,
            types=self._store.types,
            schema=self._store.schema,
            deadline=self._clock.monotonic() + self._patience_seconds,
        )
        line = self._line()
        wait = 0.0
        try:
            while True:
                sent = False
                try:
                    if wait:
                        self._clock.sleep(wait)
                    line = line or _Line(self._engine)
                    if not begun.is_outgoing:
                        begun.send_as(outgoing(line.conn, begun.batch, self._contents))
                    sent = True
                    return begun.answer(line.send(begun))
                except BaseException as error:
                    if line is not None and (line.is_broken() or must_reconnect(error)):
                        line.discard()
                        line = None
                    if isinstance(error, DataPatternsError):
                        raise
                    wait = begun.failed(error, sent=sent, now=self._clock.monotonic())
        finally:
            self._give_back(line)

    def close(self) -> None:
        """Give the connections back to the pool; those in use follow when they are done."""
        with self._closing:
            self._closed = True
            while True:
                try:
                    self._tickets.get_nowait()
                except Empty:
                    break
                line = self._idle.pop()
                if line is not None and not line.abandon_if_foreign():
                    line.close()
            # Wakes one who waits for a connection, and that one the next.
            self._idle.append(None)
            self._tickets.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _line(self) -> "_Line | None":
        self._check_open()
        try:
            self._tickets.get(timeout=self._patience_seconds)
        except Empty:
            raise ServerUnavailableError(
                SERVER, "all connections of the writer are in use; give it more"
            ) from None
        line = self._idle.pop()
        try:
            self._check_open()
        except ValueError:
            self._give_back(line)
            raise
        return None if line is not None and line.abandon_if_foreign() else line

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(CLOSED)

    def _give_back(self, line: "_Line | None") -> None:
        self._idle.append(line)
        self._tickets.put(None)
        if self._closed:  # after the put: a close that has looked before missed this one
            self.close()


class _Line:
    """A connection that is held from append to append."""

    def __init__(self, engine: Engine) -> None:
        self.conn: Connection = engine.connect()
        driver: Any = self.conn.connection.driver_connection
        self._driver = driver
        self._cursor = driver.cursor()
        self._process = os.getpid()

    def abandon_if_foreign(self) -> bool:
        """Return whether a process that was forked from this one's has it, and leave it alone.

        Both would talk at the same time, and even closing it would close the other's.
        """
        if self._process == os.getpid():
            return False
        _of_other_processes.append(self)
        return True

    def send(self, begun: Writing) -> Sequence[Any]:
        # By the driver's cursor: SQLAlchemy's costs more than all the rest on this side. Prepared,
        # unless the engine has prepare_threshold=None, as behind poolers.
        statement, parameters = begun.call()
        self._cursor.execute(statement, parameters, prepare=True)
        row: Sequence[Any] = self._cursor.fetchone()
        return row

    def is_broken(self) -> bool:
        return bool(self._driver.closed or self._driver.broken)

    def discard(self) -> None:
        self.conn.invalidate()
        self.conn.close()

    def close(self) -> None:
        self._cursor.close()
        self.conn.close()


def check_writer(connections: int, patience_seconds: float) -> None:
    """Refuse a writer that could not write.

    Raises:
        ValueError: A number is not positive, or too large.
    """
    if not 1 <= connections <= CONNECTIONS_MAX:
        raise ValueError(f"{connections} connections: use 1 to {CONNECTIONS_MAX}")
    if not 0 < patience_seconds < threading.TIMEOUT_MAX:
        raise ValueError(f"{patience_seconds} seconds of patience: wait for some")
