"""Save what an aggregate has emitted."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from datapatterns.event_sourcing.appending.appending import StreamBatch, append_events
from datapatterns.event_sourcing.content.contents import Contents
from datapatterns.event_sourcing.content.encoding import encode_batch
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.states.sourced import Batch, Sourced


def save_sourced(
    conn: Connection,
    sourced: Sourced,
    *,
    schema: str,
    types: EventTypes,
    contents: Contents,
    metadata: Mapping[str, Any] | None,
) -> Position:
    """Do what `EventStore.save` promises."""
    unsaved = unsaved_batch(
        conn, sourced, again=True, types=types, contents=contents, metadata=metadata
    )
    if unsaved is None:
        return sourced._history.position  # noqa: SLF001 -- its keeper
    batch, sent = unsaved
    position = append_events(conn, sent, schema=schema).position
    note_saved(sourced, batch, position)
    return position


def unsaved_batch(
    conn: Connection,
    sourced: Sourced,
    *,
    again: bool,
    types: EventTypes,
    contents: Contents,
    metadata: Mapping[str, Any] | None,
) -> tuple[Batch, StreamBatch] | None:
    """Return what is to be sent, if there is something.

    Args:
        conn: A connection in a transaction.
        sourced: What has emitted.
        again: Send what the last save sent, if nothing new was emitted.
        types: Of events.
        contents: How they are stored.
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
    return batch, StreamBatch(
        history.stream,
        contents.outgoing(conn, encoded, tenant=history.stream.tenant, subjects=history.persons),
        batch.expected_version,
        position=batch.after if batch.expected_version else None,
    )


def note_saved(sourced: Sourced, batch: Batch, position: Position) -> None:
    """Let it know that ``batch`` was sent, and where it is."""
    history = sourced._history  # noqa: SLF001 -- its keeper
    history.sent = batch
    history.folded.update(type(event) for _, event in history.unsaved)
    history.unsaved.clear()
    history.position = position
