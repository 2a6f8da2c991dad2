"""What a handler works with: the one transaction, and the store in it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar, overload
from uuid import UUID

from sqlalchemy import Connection

from datapatterns.event_sourcing import (
    Aggregate,
    Appended,
    Condition,
    Decider,
    EventStore,
    Expected,
    Folded,
    Position,
    StreamId,
)

A = TypeVar("A", bound=Aggregate)
C = TypeVar("C")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class CommandContext:
    """The transaction of one attempt at a command; all that is written in it is committed together.

    A handler neither commits nor rolls back: it returns, or raises.

    Attributes:
        conn: The transaction's connection, for tables of your own.
        store: The event store, for what is not below; give it ``conn``.
        tenant: Whose command it is. What is loaded and appended here is this tenant's.
        metadata: What each event gets: what was given to ``execute``, and what caused it.
        execution_id: Names the execution in all its attempts; the ``causation_id`` of its events.
        idempotency_key: What it is recorded under; None if it is not.
        attempt: Counted from 1; more if another writer was first.
    """

    conn: Connection
    store: EventStore
    tenant: str
    metadata: Mapping[str, Any]
    execution_id: UUID
    idempotency_key: str | None
    attempt: int

    @overload
    def load(self, subject: type[A], key: str) -> A: ...

    @overload
    def load(self, subject: Decider[C, S, Any], key: str) -> Folded[C, S]: ...

    def load(self, subject: Any, key: str) -> Any:
        """Return an aggregate or a decider's state, as `EventStore.load` does."""
        return self.store.load(self.conn, subject, key, tenant=self.tenant)

    def save(self, sourced: Aggregate | Folded[Any, Any]) -> Position:
        """Append what ``sourced`` has emitted, as `EventStore.save` does.

        Raises:
            VersionConflictError: Another writer was first; let it out, and the handler runs again.
        """
        return self.store.save(self.conn, sourced, metadata=self.metadata)

    @overload
    def for_update(
        self, subject: type[A], key: str, *, lock: bool = False
    ) -> AbstractContextManager[A]: ...

    @overload
    def for_update(
        self, subject: Decider[C, S, Any], key: str, *, lock: bool = False
    ) -> AbstractContextManager[Folded[C, S]]: ...

    def for_update(self, subject: Any, key: str, *, lock: bool = False) -> Any:
        """Load a state for a ``with`` block and save it at its end, as `EventStore.for_update`.

        Args:
            subject: The class of the aggregate, or the decider.
            key: Which one.
            lock: Lock the stream first, so that no other writer can be first.
        """
        return self.store.for_update(
            self.conn, subject, key, tenant=self.tenant, metadata=self.metadata, lock=lock
        )

    def append(
        self,
        stream: StreamId,
        events: Sequence[object],
        *,
        expected_version: int | Expected,
        unless: Condition | None = None,
    ) -> Appended:
        """Append events, as `EventStore.append` does.

        Raises:
            ConflictError: Another writer was first; let it out, and the handler runs again.
            ValueError: The stream is another tenant's; use ``store`` if it is meant to be.
        """
        if stream.tenant != self.tenant:
            raise ValueError(
                f"{stream} belongs to another tenant than the command; make it with"
                " context.stream(category, key), or append with context.store"
            )
        return self.store.append(
            self.conn,
            stream,
            events,
            expected_version=expected_version,
            metadata=self.metadata,
            unless=unless,
        )

    def stream(self, category: str, key: str) -> StreamId:
        """Return the name of a stream of the command's tenant."""
        return StreamId(category, key, self.tenant)
