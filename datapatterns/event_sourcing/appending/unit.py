"""Units of work: collect appends, and send them last in the caller's transaction, in one go.

Readers of the log wait in front of a transaction that has appended, so the business code should
not run between an append and the COMMIT; and transactions that append to several streams must do
so in one order. A unit takes care of both.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload
from uuid import UUID

from datapatterns.event_sourcing.appending.batching import StreamEvents, stream_batch
from datapatterns.event_sourcing.appending.flushing import Work
from datapatterns.event_sourcing.appending.pending import Saving
from datapatterns.event_sourcing.appending.tag_query import Condition
from datapatterns.event_sourcing.events import Appended, Expected, Position, StreamId
from datapatterns.event_sourcing.states.aggregate import Aggregate
from datapatterns.event_sourcing.states.decider import Decider, Folded
from datapatterns.event_sourcing.states.sourced import Sourced
from datapatterns.event_sourcing.states.subjects import beginning, subject_of

A = TypeVar("A", bound=Aggregate)
C = TypeVar("C")
S = TypeVar("S")


class Unit:
    """Appends that one transaction makes at its end, sorted, in one round trip.

    `EventStore.unit` makes it. What a savepoint takes back is what came since it began; a rollback
    takes back everything. Nothing is sent before the end, so reads in between don't show it.
    """

    def __init__(self, work: Work) -> None:
        self._work = work

    @property
    def appended(self) -> dict[StreamId, Appended]:
        """What the last transaction that ended well did to each stream."""
        return dict(self._work.appended)

    @property
    def position(self) -> Position | None:
        """The last position of the last transaction: the token for reading one's own write."""
        return max((done.position for done in self._work.appended.values()), default=None)

    def append(
        self,
        stream: StreamId,
        events: Sequence[object],
        *,
        expected_version: int | Expected,
        metadata: Mapping[str, Any] | None = None,
        event_ids: Sequence[UUID] | None = None,
    ) -> None:
        """Append ``events`` at the end of the transaction, as `EventStore.append` does.

        A second append to the same stream follows the first, and expects the version after it.

        Raises:
            EventDataError: An event could not be stored and read back.
            EventTypeError: The class of an event is not declared.
            ValueError: There are no events, too many, not as many ids, or they do not follow what
                the unit has for the stream.
        """
        wanted = StreamEvents(stream, events, expected_version, metadata, event_ids)
        self._work.begin()
        self._work.pending.add(stream_batch(wanted, types=self._work.store.types))

    def unless(self, condition: Condition) -> None:
        """Append nothing of this unit if an event matches ``condition``, from `read_tagged`.

        The end of the transaction then raises a `ConditionConflictError`. The events of this unit
        don't count; all its streams belong to the tenant of the condition.

        Raises:
            ValueError: The unit has another condition.
        """
        self._work.begin()
        self._work.pending.require(condition)

    @overload
    def load(self, subject: type[A], key: str, *, tenant: str = "") -> A: ...

    @overload
    def load(self, subject: Decider[C, S, Any], key: str, *, tenant: str = "") -> Folded[C, S]: ...

    def load(self, subject: Any, key: str, *, tenant: str = "") -> Any:
        """Load the state of a stream, and save at the end what it will have emitted.

        The same key gives the same object until the transaction ends. In an async session, call
        it by ``await session.run_sync(lambda _: unit.load(Basket, "7"))``.

        Raises: as `EventStore.load`.
        """
        known = self._work.pending.saving_of(beginning(subject, key, tenant).stream)
        if known is not None and subject_of(known.sourced) is subject:
            return known.sourced
        loaded = self._work.store.load(self._work.connection(), subject, key, tenant=tenant)
        self._work.pending.save(Saving(loaded, again=False))
        return loaded

    def save(self, sourced: Sourced, *, metadata: Mapping[str, Any] | None = None) -> None:
        """Save ``sourced`` at the end, with what it emits until then, as `EventStore.save` does.

        Raises:
            ValueError: The unit appends to its stream otherwise.
        """
        self._work.begin()
        self._work.pending.save(Saving(sourced, again=True, metadata=metadata))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Do nothing: the session decides about the end."""
