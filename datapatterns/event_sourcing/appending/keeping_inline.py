"""What else belongs to an append: read models that are kept in its transaction."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, cast

from sqlalchemy import Connection

from datapatterns.event_sourcing.appending.appending import StreamBatch
from datapatterns.event_sourcing.events import Appended, StreamId

if TYPE_CHECKING:
    from datapatterns.event_sourcing.state_store import StateStore
    from datapatterns.event_sourcing.store import EventStore

KEPT_INLINE: Final = "datapatterns.kept_inline"
"""The setting by which a transaction says what it keeps; a trigger of the events compares."""

AppendedByStream: TypeAlias = dict[StreamId, Appended]


class KeptInline(Protocol):
    """Read models that are kept in the transaction of each append."""

    def append(
        self,
        store: "EventStore",
        conn: Connection,
        batches: Sequence[StreamBatch],
        append: Callable[[], AppendedByStream],
    ) -> AppendedByStream:
        """Call ``append``, which appends ``batches``, and keep what follows from it.

        Args:
            store: Whose events they are.
            conn: A connection in the transaction of the append.
            batches: Their events as plain JSON, not as a codec stores them.
            append: Does it, and returns what it did.
        """
        ...


def append_keeping(
    store: "StateStore",
    conn: Connection,
    batches: Sequence[StreamBatch],
    append: Callable[[], AppendedByStream],
) -> AppendedByStream:
    """Append, and keep what the store keeps inline."""
    if store.inline is None:
        return append()
    whole = cast("EventStore", store)  # of which a StateStore is a part
    return store.inline.append(whole, conn, batches, append)
