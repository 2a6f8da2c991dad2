"""Carry out commands: load, decide, append, commit; and decide again if another writer was first.

What is tried again after a COMMIT without an answer is not the decision but the append, with the
same event ids: it is recognised if it was carried out, and made up for if it was not.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine

from datapatterns.errors import OutcomeUnknownError, StreamArchivedError, VersionConflictError
from datapatterns.event_sourcing.appending.after_commit import after_commit
from datapatterns.event_sourcing.commands.attempting import (
    carry_out,
    carry_out_async,
    is_serialisation_failure,
)
from datapatterns.event_sourcing.commands.retrying import DEFAULT_RETRY, Attempts, Retry
from datapatterns.event_sourcing.commands.stream_lock import lock_stream
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.states.decider import Folded, refuse_unfinished
from datapatterns.event_sourcing.states.sourced import Sourced
from datapatterns.event_sourcing.states.subjects import Subject, beginning

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from datapatterns.event_sourcing.state_store import StateStore
    from datapatterns.event_sourcing.states.snapshot_writer import SnapshotTaker

R = TypeVar("R", bound=Sourced)


@dataclass(frozen=True, slots=True)
class Handled(Generic[R]):
    """What came of a command.

    Attributes:
        sourced: The aggregate, or what a decider has folded, with the command's events.
        events: What happened; empty if nothing did.
        position: The token for reading this write.
        answer: What the command returned: of a decider its events, too.
        attempts: How many there were; more than 1 if other writers were first.
    """

    sourced: R
    events: tuple[object, ...]
    position: Position
    answer: object
    attempts: int


@dataclass(frozen=True, slots=True)
class CommandPolicy:
    """How commands are carried out.

    Attributes:
        lock: Lock the stream before it is loaded: rivals wait, where else they decide in vain.
        retry: How often, and for how long.
        snapshots: Is told of what was committed, such as a `SnapshotWriter`.
    """

    lock: bool = False
    retry: Retry = DEFAULT_RETRY
    snapshots: "SnapshotTaker | None" = None


DEFAULT_COMMAND_POLICY: Final = CommandPolicy()
"""No lock, ten attempts within ten seconds, no snapshots."""


class Commanding(NamedTuple):
    """How one command is carried out, what is added to each of its events, and whose they are."""

    policy: CommandPolicy
    metadata: Mapping[str, Any] | None = None
    tenant: str = ""


def handle(
    store: "StateStore",
    engine: Engine,
    subject: Subject,
    key: str,
    command: Any,  # noqa: ANN401 -- what the subject understands
    how: Commanding,
) -> Handled[Any]:
    """Do what `EventStore.handle` promises."""
    task = _Task(store, subject, key, command, how)
    carry_out(task, engine, store.clock)
    return task.handled()


async def handle_async(
    store: "StateStore",
    engine: "AsyncEngine",
    subject: Subject,
    key: str,
    command: Any,  # noqa: ANN401 -- what the subject understands
    how: Commanding,
) -> Handled[Any]:
    """Do what `EventStore.handle_async` promises."""
    task = _Task(store, subject, key, command, how)
    await carry_out_async(task, engine)
    return task.handled()


@contextmanager
def for_update(
    store: "StateStore", conn: Connection, subject: Subject, key: str, how: Commanding
) -> Iterator[Any]:
    """Do what `EventStore.for_update` promises."""
    sourced = _loaded(store, conn, subject, key, how)
    yield sourced
    _saved(store, conn, sourced, how)


@asynccontextmanager
async def for_update_async(
    store: "StateStore", conn: "AsyncConnection", subject: Subject, key: str, how: Commanding
) -> AsyncIterator[Any]:
    """Do what `EventStore.for_update_async` promises."""
    sourced = await conn.run_sync(lambda sync: _loaded(store, sync, subject, key, how))
    yield sourced
    await conn.run_sync(lambda sync: _saved(store, sync, sourced, how))


def _loaded(
    store: "StateStore", conn: Connection, subject: Subject, key: str, how: Commanding
) -> Sourced:
    if how.policy.lock:
        stream = beginning(subject, key, how.tenant).stream
        lock_stream(conn, stream, schema=store.schema)
    loaded: Sourced = store.load(conn, subject, key, tenant=how.tenant)
    return loaded


def _saved(store: "StateStore", conn: Connection, sourced: Sourced, how: Commanding) -> None:
    if sourced.unsaved:
        store.save(conn, sourced, metadata=how.metadata)
    taker = how.policy.snapshots
    if taker is not None:
        after_commit(conn, lambda: taker.offer(sourced))


@dataclass(slots=True)
class _Task:
    """One command, however often it is tried."""

    store: "StateStore"
    subject: Subject
    key: str
    command: Any
    how: Commanding
    attempts: Attempts = field(init=False)
    sourced: Sourced | None = None
    answer: object = None
    events: tuple[object, ...] = ()
    unknown: OutcomeUnknownError | None = None

    def __post_init__(self) -> None:
        self.attempts = Attempts(self.how.policy.retry, self.store.clock)

    @property
    def attempted(self) -> str:
        return f"a command to {beginning(self.subject, self.key, self.how.tenant).stream}"

    @property
    def is_done(self) -> bool:
        """Whether a COMMIT without an answer had nothing to commit."""
        return self.unknown is not None and not self.events

    def attempt(self, conn: Connection) -> None:
        self.attempts.begin()
        if self.unknown is not None:
            assert self.sourced is not None
            self.store.save(conn, self.sourced, metadata=self.how.metadata)
            return
        sourced = self.sourced = _loaded(self.store, conn, self.subject, self.key, self.how)
        self.answer = _decided(sourced, self.command)
        self.events = sourced.unsaved
        if self.events:
            self.store.save(conn, sourced, metadata=self.how.metadata)

    def delay_after(self, error: Exception) -> float:
        """Return how long to wait before the next attempt.

        Raises:
            Exception: The one given, if there is no next attempt.
        """
        if isinstance(error, OutcomeUnknownError):
            self.unknown = error
            if not self.events:
                return 0.0
        elif isinstance(error, VersionConflictError | StreamArchivedError):
            self.unknown = None  # definite: it was not carried out
        if self.unknown is None and not _may_pass(error):
            raise error
        seconds = self.attempts.delay()
        if seconds is not None:
            return seconds
        if self.unknown is None:
            raise error
        raise self.outcome(self.unknown) from self.unknown.__cause__

    def outcome(self, unknown: OutcomeUnknownError) -> OutcomeUnknownError:
        """Return the unknown outcome with the ids of the events."""
        ids = [event_id for event_id, _ in self._sent()]
        return OutcomeUnknownError(self.attempted, reason=unknown.reason, ids=ids)

    def handled(self) -> Handled[Any]:
        sourced = self.sourced
        assert sourced is not None
        if self.how.policy.snapshots is not None:
            self.how.policy.snapshots.offer(sourced)
        position = sourced._history.position  # noqa: SLF001 -- its keeper
        return Handled(sourced, self.events, position, self.answer, self.attempts.made)

    def _sent(self) -> list[tuple[Any, object]]:
        sent = self.sourced and self.sourced._history.sent  # noqa: SLF001 -- its keeper
        return sent.events if sent else []


def _decided(sourced: Sourced, command: Any) -> object:  # noqa: ANN401 -- as above
    if isinstance(sourced, Folded):
        return sourced.decide(command)
    decide: Callable[[Sourced], object] = command
    answer = decide(sourced)
    refuse_unfinished(answer, "the command")
    return answer


def _may_pass(error: Exception) -> bool:
    """Return whether to decide again, on what is there then."""
    return isinstance(error, VersionConflictError) or is_serialisation_failure(error)
