"""Send what a unit of work has collected, and know what became of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from datapatterns.event_sourcing.appending.appending import append_to_streams
from datapatterns.event_sourcing.appending.batching import check_size, guard_of_all, outgoing
from datapatterns.event_sourcing.appending.keeping_inline import AppendedByStream, append_keeping
from datapatterns.event_sourcing.appending.pending import PendingAppends
from datapatterns.event_sourcing.events import Appended, StreamId
from datapatterns.event_sourcing.states.saving import note_saved, unsaved_batch
from datapatterns.transactions import refuse_autocommit

if TYPE_CHECKING:
    from datapatterns.event_sourcing.store import EventStore


@dataclass(slots=True)
class Work:
    """What a unit is about.

    Attributes:
        store: Where it appends.
        connection: Returns the transaction's connection.
        begin: Begins a transaction if there is none, without a round trip: what is collected
            belongs to one, or a rollback would not take it back.
        pending: What is to be appended.
        sent: What the open transaction has appended.
        appended: What the last transaction that ended well has appended.
    """

    store: "EventStore"
    connection: Callable[[], Connection]
    begin: Callable[[], None]
    pending: PendingAppends = field(default_factory=PendingAppends)
    sent: dict[StreamId, Appended] = field(default_factory=dict)
    appended: dict[StreamId, Appended] = field(default_factory=dict)

    def flush(self, conn: Connection) -> None:
        """Append what is pending; it stays pending if that fails.

        Raises: as `EventStore.append_to_streams`; and

            AggregateError: An aggregate holds what a savepoint has taken back.
            IsolationLevelError: The connection is in autocommit mode.
        """
        refuse_autocommit(conn)
        self.pending.check_unspoilt()
        store, contents = self.store, self.store.contents
        merged = list(self.pending.merged.values())
        saved = []
        for saving in self.pending.savings:
            unsaved = unsaved_batch(
                saving.sourced, again=saving.again, types=store.types, metadata=saving.metadata
            )
            if unsaved is not None:
                saved.append((saving.sourced, unsaved))
        plain = merged + [unsaved.plain for _, unsaved in saved]
        check_size(plain)
        streams = [batch.stream for batch in plain]
        guard = guard_of_all(self.pending.condition, streams, types=store.types)

        def append() -> AppendedByStream:
            batches = [outgoing(conn, batch, contents) for batch in merged]
            batches += [unsaved.outgoing(conn, contents) for _, unsaved in saved]
            return append_to_streams(conn, batches, schema=store.schema, guard=guard)

        done = append_keeping(store, conn, plain, append) if plain else {}
        # Only now: after a conflict, a second COMMIT must not go through without the events.
        for sourced, unsaved in saved:
            note_saved(sourced, unsaved.batch, done[sourced.stream].position)
        self.sent |= done
        self.pending.clear()

    def end(self, *, well: bool) -> None:
        """Begin anew."""
        self.pending.clear()
        if well:
            self.appended = self.sent
        self.sent = {}
