"""Save what an aggregate has emitted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection

from datapatterns.event_sourcing.appending.appending import StreamBatch, append_events
from datapatterns.event_sourcing.appending.keeping_inline import AppendedByStream, append_keeping
from datapatterns.event_sourcing.content.contents import Contents
from datapatterns.event_sourcing.content.encoding import encode_batch
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.states.sourced import Batch, Sourced

if TYPE_CHECKING:
    from datapatterns.event_sourcing.state_store import StateStore


class Unsaved(NamedTuple):
    """What is to be sent.

    Attributes:
        batch: What the aggregate notes once it was.
        plain: Its events as JSON.
        persons: Whom the stream is known to be about.
    """

    batch: Batch
    plain: StreamBatch
    persons: set[str] | None

    def outgoing(self, conn: Connection, contents: Contents) -> StreamBatch:
        """Return it as the database stores it."""
        sent = contents.outgoing(
            conn, self.plain.encoded, tenant=self.plain.stream.tenant, subjects=self.persons
        )
        return self.plain._replace(encoded=sent)


def save_sourced(
    store: "StateStore",
    conn: Connection,
    sourced: Sourced,
    *,
    metadata: Mapping[str, Any] | None,
) -> Position:
    """Do what `EventStore.save` promises."""
    unsaved = unsaved_batch(sourced, again=True, types=store.types, metadata=metadata)
    if unsaved is None:
        return sourced._history.position  # noqa: SLF001 -- its keeper
    stream = unsaved.plain.stream

    def append() -> AppendedByStream:
        sent = unsaved.outgoing(conn, store.contents)
        return {stream: append_events(conn, sent, schema=store.schema)}

    position = append_keeping(store, conn, [unsaved.plain], append)[stream].position
    note_saved(sourced, unsaved.batch, position)
    return position


def unsaved_batch(
    sourced: Sourced, *, again: bool, types: EventTypes, metadata: Mapping[str, Any] | None
) -> Unsaved | None:
    """Return what is to be sent, if there is something.

    Args:
        sourced: What has emitted.
        again: Send what the last save sent, if nothing new was emitted.
        types: Of events.
        metadata: Added to each event.

    Raises:
        AggregateError: A handler raised, so nobody knows what the state is.
    """
    history = sourced._history  # noqa: SLF001 -- its keeper
    history.refuse_torn()
    if history.unsaved:
        batch = Batch(
            history.version - len(history.unsaved), history.position, list(history.unsaved)
        )
    elif again and history.sent is not None:
        batch = history.sent
    else:
        return None
    ids = [event_id for event_id, _ in batch.events]
    encoded = encode_batch(
        [event for _, event in batch.events], types=types, metadata=metadata, event_ids=ids
    )
    plain = StreamBatch(
        history.stream,
        encoded,
        batch.expected_version,
        position=batch.after if batch.expected_version else None,
    )
    return Unsaved(batch, plain, history.persons)


def note_saved(sourced: Sourced, batch: Batch, position: Position) -> None:
    """Let it know that ``batch`` was sent, and where it is."""
    history = sourced._history  # noqa: SLF001 -- its keeper
    history.sent = batch
    history.folded.update(type(event) for _, event in history.unsaved)
    history.unsaved.clear()
    history.position = position
