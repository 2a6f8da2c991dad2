"""Units of work: collect appends, and send them last in the caller's transaction, in one go.

Readers of the log wait in front of a transaction that has appended, so the business code should
not run between an append and the COMMIT; and transactions that append to several streams must do
so in one order. A unit takes care of both.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from datapatterns.event_sourcing.aggregate import Aggregate, stream_of
from datapatterns.event_sourcing.batching import StreamEvents, stream_batch
from datapatterns.event_sourcing.events import Appended, Expected, Position, StreamId
from datapatterns.event_sourcing.flushing import Work
from datapatterns.event_sourcing.pending import Saving

A = TypeVar("A", bound=Aggregate)


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

    def load(self, aggregate: type[A], key: str) -> A:
        """Load an aggregate, and save at the end what it will have emitted.

        The same key gives the same object until the transaction ends. In an async session, call
        it by ``await session.run_sync(lambda _: unit.load(Basket, "7"))``.

        Raises: as `EventStore.load`.
        """
        known = self._work.pending.saving_of(stream_of(aggregate, key))
        if known is not None and type(known.aggregate) is aggregate:
            return known.aggregate
        loaded = self._work.store.load(self._work.connection(), aggregate, key)
        self._work.pending.save(Saving(loaded, again=False))
        return loaded

    def save(self, aggregate: Aggregate, *, metadata: Mapping[str, Any] | None = None) -> None:
        """Save ``aggregate`` at the end, with what it emits until then, as `EventStore.save` does.

        Raises:
            ValueError: The unit appends to its stream otherwise.
        """
        self._work.begin()
        self._work.pending.save(Saving(aggregate, again=True, metadata=metadata))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Do nothing: the session decides about the end."""
