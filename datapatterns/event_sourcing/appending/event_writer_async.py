"""The asynchronous twin of `EventWriter`; needs the ``async`` extra."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import DataPatternsError, ServerUnavailableError
from datapatterns.event_sourcing.appending.batching import outgoing
from datapatterns.event_sourcing.appending.event_writer import CLOSED, check_writer
from datapatterns.event_sourcing.appending.tag_query import Condition
from datapatterns.event_sourcing.appending.writing import SERVER, Writing, must_reconnect, writing
from datapatterns.event_sourcing.events import Appended, Expected, StreamId

if TYPE_CHECKING:
    from datapatterns.event_sourcing.store import EventStore


class AsyncEventWriter:
    """Makes each append a transaction of its own, in one round trip; see `EventWriter`.

    A cancelled append stays a cancellation; if it may have taken place, an `OutcomeUnknownError`
    is its cause, which `find_unknown_outcome` finds.

    Args:
        store: Where events go, and their types.
        engine: The primary.
        connections: At most so many appends at the same time; others wait.
        patience_seconds: For how long an append is sent again, and waits for a connection.
        clock: What the deadline goes by.

    Raises:
        ValueError: A number is not positive.
    """

    def __init__(
        self,
        store: "EventStore",
        engine: AsyncEngine,
        *,
        connections: int = 4,
        patience_seconds: float = 10.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_writer(connections, patience_seconds)
        self._store = store
        self._engine = engine
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._closed = False
        self._idle: asyncio.LifoQueue[_Line | None] = asyncio.LifoQueue()
        for _ in range(connections):
            self._idle.put_nowait(None)

    async def append(
        self,
        stream: StreamId,
        events: Sequence[object],
        *,
        expected_version: int | Expected,
        metadata: Mapping[str, Any] | None = None,
        event_ids: Sequence[UUID] | None = None,
        unless: Condition | None = None,
    ) -> Appended:
        """Append ``events`` to ``stream``, and commit, as `EventWriter.append` does.

        Raises: as `EventWriter.append`.
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
        line = await self._line()
        sent, wait = False, 0.0
        try:
            while True:
                try:
                    if wait:
                        await asyncio.sleep(wait)
                    line = line or await _Line.open(self._engine)
                    if not begun.is_outgoing:
                        begun.send_as(
                            await line.conn.run_sync(outgoing, begun.batch, self._store.contents)
                        )
                    sent = True
                    return begun.answer(await line.send(begun))
                except BaseException as error:
                    was_sent, sent = sent, False
                    if line is not None and (line.is_broken() or must_reconnect(error)):
                        await line.discard()
                        line = None
                    if isinstance(error, DataPatternsError):
                        raise
                    wait = begun.failed(error, sent=was_sent, now=self._clock.monotonic())
        finally:
            try:
                await self._give_back(line)
            except asyncio.CancelledError as error:  # after the answer, unless that was a refusal
                begun.failed(error, sent=sent, now=self._clock.monotonic())

    async def close(self) -> None:
        """Give the connections back to the pool; those in use follow when they are done.

        Also if it is cancelled: then they follow in a task of their own.
        """
        self._closed = True
        await asyncio.shield(asyncio.create_task(self._close_idle()))

    async def _close_idle(self) -> None:
        while not self._idle.empty():
            line = self._idle.get_nowait()
            if line is not None:
                await line.close()
        self._idle.put_nowait(None)  # wakes one who waits for a connection, and that one the next

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _line(self) -> "_Line | None":
        self._check_open()
        try:
            async with asyncio.timeout(self._patience_seconds):
                line = await self._idle.get()
        except TimeoutError:
            raise ServerUnavailableError(
                SERVER, "all connections of the writer are in use; give it more"
            ) from None
        try:
            self._check_open()
        except ValueError:
            await self._give_back(line)
            self._idle.put_nowait(None)
            raise
        return line

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(CLOSED)

    async def _give_back(self, line: "_Line | None") -> None:
        if not self._closed:
            self._idle.put_nowait(line)
        elif line is not None:
            await asyncio.shield(asyncio.create_task(line.close()))


class _Line:
    """A connection that is held from append to append."""

    def __init__(self, conn: AsyncConnection, driver: Any) -> None:  # noqa: ANN401 -- psycopg's
        self.conn = conn
        self._driver = driver
        self._cursor = driver.cursor()

    @classmethod
    async def open(cls, engine: AsyncEngine) -> "_Line":
        conn = await engine.connect()
        try:
            # Not by the engine: whoever is cancelled meanwhile would leave it outside of its pool.
            conn = await conn.execution_options(isolation_level="AUTOCOMMIT")
            return cls(conn, (await conn.get_raw_connection()).driver_connection)
        except BaseException:
            await _discard(conn)
            raise

    async def send(self, begun: Writing) -> Sequence[Any]:
        statement, parameters = begun.call()
        await self._cursor.execute(statement, parameters, prepare=True)
        row: Sequence[Any] = await self._cursor.fetchone()
        return row

    def is_broken(self) -> bool:
        return bool(self._driver.closed or self._driver.broken)

    async def discard(self) -> None:
        await _discard(self.conn)

    async def close(self) -> None:
        await self.conn.close()


async def _discard(conn: AsyncConnection) -> None:
    await conn.invalidate()
    await conn.close()
