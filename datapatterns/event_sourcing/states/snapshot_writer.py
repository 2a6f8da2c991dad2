"""Write snapshots off the command's path: after its COMMIT, in a thread or a task of their own.

What is queued is which stream, not its state: the writer loads it again, so nobody changes it under
its hands, and a state whose events are not there after all costs a look and leaves nothing.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from threading import Condition, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from sqlalchemy import Connection, Engine

from datapatterns.errors import DataPatternsError
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.states.snapshotting import is_due
from datapatterns.event_sourcing.states.sourced import Sourced
from datapatterns.event_sourcing.states.subjects import Subject, subject_of
from datapatterns.transactions import transaction

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from datapatterns.event_sourcing.state_store import StateStore

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_SECONDS: Final = 5.0
"""How long closing waits for the snapshot that is being written."""


class SnapshotTaker(Protocol):
    """Whatever is told of states that were committed."""

    def offer(self, sourced: Sourced, /) -> bool:
        """Take a state that may be due for a snapshot; return at once, and never raise."""
        ...


@dataclass(slots=True)
class _Backlog:
    """Streams that are due, each once, oldest first."""

    capacity: int
    keep: int
    wanted: dict[tuple[Subject, StreamId], None] = field(default_factory=dict)
    dropped: int = 0

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"{self.capacity} streams are no backlog; allow at least 1")
        if self.keep < 1:
            raise ValueError(f"keeping {self.keep} snapshots means writing none; keep at least 1")

    def add(self, sourced: Sourced) -> bool:
        if not is_due(sourced):
            return False
        key = subject_of(sourced), sourced.stream
        if key not in self.wanted and len(self.wanted) >= self.capacity:
            self.dropped += 1
            return False
        self.wanted[key] = None
        return True

    def take(self) -> tuple[Subject, StreamId]:
        oldest = next(iter(self.wanted))
        del self.wanted[oldest]
        return oldest


def write_snapshot(
    conn: Connection, store: "StateStore", subject: Subject, stream: StreamId, *, keep: int
) -> bool:
    """Load a state and store it, if something has followed the latest snapshot."""
    sourced: Any = store.load(conn, subject, stream.key, tenant=stream.tenant)
    history = sourced._history  # noqa: SLF001 -- its keeper
    return history.version > history.snapshot_version and store.save_snapshot(
        conn, sourced, keep=keep
    )


def _tell(stream: StreamId, error: Exception) -> None:
    # Of other errors only the kind: the driver's quote rows.
    reason = str(error) if isinstance(error, DataPatternsError) else type(error).__name__
    known = {"stream": str(stream), "reason": reason}
    logger.warning("snapshot not written", extra=known)


class SnapshotWriter:
    """Writes snapshots in one thread; a command only says which stream is due.

    It never slows a command down or lets it fail: if the writer cannot keep up, it drops what comes
    in, for the next command to the stream offers it again; what fails is logged.

    Args:
        store: Whose snapshots.
        engine: It takes one connection of it, while there is something to write.
        capacity: How many streams may wait.
        keep: How many snapshots of each are kept; see `EventStore.save_snapshot`.
    """

    def __init__(
        self, store: "StateStore", engine: Engine, *, capacity: int = 1_000, keep: int = 3
    ) -> None:
        self._store = store
        self._engine = engine
        self._backlog = _Backlog(capacity, keep)
        self._changed = Condition()
        self._thread: Thread | None = None
        self._is_busy = False
        self._is_closed = False
        self.written = 0
        """How many snapshots were written."""

    @property
    def dropped(self) -> int:
        """How many streams were offered in vain, for too many waited."""
        return self._backlog.dropped

    def offer(self, sourced: Sourced, /) -> bool:
        """Take what was loaded or saved, after its COMMIT, if the policy asks for a snapshot.

        Returns:
            Whether a snapshot will be written. It returns at once, and never raises.
        """
        with self._changed:
            if self._is_closed or not self._backlog.add(sourced):
                return False
            self._start()
            self._changed.notify_all()
            return True

    def flush(self, *, timeout_seconds: float) -> bool:
        """Wait until nothing is left to write; return whether that came to pass in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._backlog.wanted or self._is_busy), timeout_seconds
            )

    def close(self, *, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Write no more: what waits is dropped, what is being written is waited for."""
        with self._changed:
            self._is_closed = True
            self._backlog.wanted.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _start(self) -> None:
        # Not alive in a process that was forked after it began.
        if self._thread is None or not self._thread.is_alive():
            self._is_busy = False
            self._thread = Thread(target=self._run, name="snapshot-writer", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._is_closed or bool(self._backlog.wanted))
                if self._is_closed:
                    return
                self._is_busy = True
                subject, stream = self._backlog.take()
            try:
                with transaction(self._engine, attempted="a snapshot") as conn:
                    is_new = write_snapshot(
                        conn, self._store, subject, stream, keep=self._backlog.keep
                    )
                self.written += is_new
            except Exception as error:  # noqa: BLE001 -- a copy that is not written costs only time
                _tell(stream, error)


class AsyncSnapshotWriter:
    """The same in a task, for asyncio; offer from the loop that it began in.

    Args:
        store: Whose snapshots.
        engine: It takes one connection of it, while there is something to write.
        capacity: How many streams may wait.
        keep: How many snapshots of each are kept; see `EventStore.save_snapshot`.
    """

    def __init__(
        self, store: "StateStore", engine: "AsyncEngine", *, capacity: int = 1_000, keep: int = 3
    ) -> None:
        self._store = store
        self._engine = engine
        self._backlog = _Backlog(capacity, keep)
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self.written = 0
        """How many snapshots were written."""

    @property
    def dropped(self) -> int:
        """How many streams were offered in vain, for too many waited."""
        return self._backlog.dropped

    def offer(self, sourced: Sourced, /) -> bool:
        """Take what was loaded or saved, after its COMMIT, if the policy asks for a snapshot.

        Returns:
            Whether a snapshot will be written. It returns at once, and never raises.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a connection that was given back when the loop had ended
            return False
        if self._is_closed or not self._backlog.add(sourced):
            return False
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="snapshot-writer")
        return True

    async def flush(self, *, timeout_seconds: float) -> bool:
        """Wait until nothing is left to write; return whether that came to pass in time."""
        if self._task is None:
            return True
        done, _ = await asyncio.wait([self._task], timeout=timeout_seconds)
        return bool(done)

    async def aclose(self, *, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Write no more: what waits is dropped, what is being written is waited for."""
        self._is_closed = True
        self._backlog.wanted.clear()
        if not await self.flush(timeout_seconds=timeout_seconds) and self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.aclose()

    async def _run(self) -> None:
        from datapatterns.aio import in_transaction  # noqa: PLC0415 -- needs an extra

        while self._backlog.wanted:
            subject, stream = self._backlog.take()
            try:
                self.written += await in_transaction(
                    self._engine,
                    write_snapshot,
                    self._store,
                    subject,
                    stream,
                    keep=self._backlog.keep,
                )
            except Exception as error:  # noqa: BLE001 -- as above
                _tell(stream, error)
