"""What the event store promises about commands, in transactions of its own and in the caller's."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sqlalchemy import Connection, Engine

from datapatterns.event_sourcing.commands.commanding import (
    DEFAULT_COMMAND_POLICY,
    Commanding,
    CommandPolicy,
    Handled,
    for_update,
    for_update_async,
    handle,
    handle_async,
)
from datapatterns.event_sourcing.state_store import StateStore
from datapatterns.event_sourcing.states.aggregate import Aggregate
from datapatterns.event_sourcing.states.decider import Decider, Folded
from datapatterns.event_sourcing.states.snapshot_writer import SnapshotTaker
from datapatterns.event_sourcing.states.subjects import Subject

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

A = TypeVar("A", bound=Aggregate)
C = TypeVar("C")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class CommandStore(StateStore):
    """The part of an `EventStore` that carries out commands."""

    @overload
    def handle(
        self,
        engine: Engine,
        subject: type[A],
        key: str,
        command: Callable[[A], object],
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        policy: CommandPolicy = DEFAULT_COMMAND_POLICY,
    ) -> Handled[A]: ...

    @overload
    def handle(
        self,
        engine: Engine,
        subject: Decider[C, S, Any],
        key: str,
        command: C,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        policy: CommandPolicy = DEFAULT_COMMAND_POLICY,
    ) -> Handled[Folded[C, S]]: ...

    def handle(  # noqa: PLR0913 -- what may be said about one command
        self,
        engine: Engine,
        subject: Subject,
        key: str,
        command: Any,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        policy: CommandPolicy = DEFAULT_COMMAND_POLICY,
    ) -> Any:
        """Carry out ``command`` in a transaction of its own: load, decide, append, commit.

        If another writer was first, it decides again, on what is there now. If the answer to the
        COMMIT is lost, it appends the same events once more: that is recognised if the first
        attempt got through. So what decides may run several times, and must do nothing else.

        Args:
            engine: Where.
            subject: The class of the aggregate, or the decider.
            key: Which one.
            command: For an aggregate a function of it, such as ``lambda basket: basket.scan(1)``,
                whose result is the answer; for a decider what it understands.
            tenant: Whose.
            metadata: Added to each event.
            policy: How often it is tried, whether rivals wait, who writes snapshots.

        Raises:
            OutcomeUnknownError: The COMMIT was sent, and nobody could be asked in time whether it
                was carried out.
            StreamArchivedError: The stream takes no more events.
            VersionConflictError: Other writers were first each time.
        """
        how = Commanding(policy, metadata, tenant)
        return handle(self, engine, subject, key, command, how)

    @overload
    async def handle_async(
        self,
        engine: "AsyncEngine",
        subject: type[A],
        key: str,
        command: Callable[[A], object],
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        policy: CommandPolicy = DEFAULT_COMMAND_POLICY,
    ) -> Handled[A]: ...

    @overload
    async def handle_async(
        self,
        engine: "AsyncEngine",
        subject: Decider[C, S, Any],
        key: str,
        command: C,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        policy: CommandPolicy = DEFAULT_COMMAND_POLICY,
    ) -> Handled[Folded[C, S]]: ...

    async def handle_async(  # noqa: PLR0913 -- what may be said about one command
        self,
        engine: "AsyncEngine",
        subject: Subject,
        key: str,
        command: Any,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        policy: CommandPolicy = DEFAULT_COMMAND_POLICY,
    ) -> Any:
        """Do as `handle`, on an async engine; needs the ``async`` extra.

        A cancelled command stays a cancellation; if it may have been carried out, an
        `OutcomeUnknownError` with the ids of its events is its cause, which
        `find_unknown_outcome` finds.
        """
        how = Commanding(policy, metadata, tenant)
        return await handle_async(self, engine, subject, key, command, how)

    @overload
    def for_update(
        self,
        conn: Connection,
        subject: type[A],
        key: str,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        lock: bool = False,
        snapshots: SnapshotTaker | None = None,
    ) -> AbstractContextManager[A]: ...

    @overload
    def for_update(
        self,
        conn: Connection,
        subject: Decider[C, S, Any],
        key: str,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        lock: bool = False,
        snapshots: SnapshotTaker | None = None,
    ) -> AbstractContextManager[Folded[C, S]]: ...

    def for_update(  # noqa: PLR0913 -- what may be said about one command
        self,
        conn: Connection,
        subject: Subject,
        key: str,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        lock: bool = False,
        snapshots: SnapshotTaker | None = None,
    ) -> Any:
        """Load a state for a ``with`` block, and save at its end what it has emitted.

        The caller commits. If the block raises, nothing is saved.

        Args:
            conn: A connection in a transaction.
            subject: The class of the aggregate, or the decider.
            key: Which one.
            tenant: Whose.
            metadata: Added to each event.
            lock: Lock the stream first, so that no other writer can be first.
            snapshots: Is told of the state once the transaction has committed.

        Raises:
            VersionConflictError: At the end of the block: another writer was first, or another
                block on the same stream. Nothing was written; the transaction is still usable.
        """
        how = Commanding(CommandPolicy(lock=lock, snapshots=snapshots), metadata, tenant)
        return for_update(self, conn, subject, key, how)

    @overload
    def for_update_async(
        self,
        conn: "AsyncConnection",
        subject: type[A],
        key: str,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        lock: bool = False,
        snapshots: SnapshotTaker | None = None,
    ) -> AbstractAsyncContextManager[A]: ...

    @overload
    def for_update_async(
        self,
        conn: "AsyncConnection",
        subject: Decider[C, S, Any],
        key: str,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        lock: bool = False,
        snapshots: SnapshotTaker | None = None,
    ) -> AbstractAsyncContextManager[Folded[C, S]]: ...

    def for_update_async(  # noqa: PLR0913 -- what may be said about one command
        self,
        conn: "AsyncConnection",
        subject: Subject,
        key: str,
        *,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        lock: bool = False,
        snapshots: SnapshotTaker | None = None,
    ) -> Any:
        """Do as `for_update`, on an async connection, for ``async with``."""
        how = Commanding(CommandPolicy(lock=lock, snapshots=snapshots), metadata, tenant)
        return for_update_async(self, conn, subject, key, how)
