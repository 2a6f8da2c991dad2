"""Save what an aggregate has emitted."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from datapatterns.event_sourcing.aggregate import Aggregate, Batch
from datapatterns.event_sourcing.appending import StreamBatch, append_events
from datapatterns.event_sourcing.contents import Contents
from datapatterns.event_sourcing.encoding import encode_batch
from datapatterns.event_sourcing.event_types import EventTypes
from datapatterns.event_sourcing.events import Position


def save_aggregate(
    conn: Connection,
    aggregate: Aggregate,
    *,
    schema: str,
    types: EventTypes,
    contents: Contents,
    metadata: Mapping[str, Any] | None,
) -> Position:
    """Do what `EventStore.save` promises."""
    history = aggregate._history  # noqa: SLF001 -- its keeper
    if history.unsaved:
        batch = Batch(
            history.version - len(history.unsaved), history.position, list(history.unsaved)
        )
    elif history.sent is not None:
        batch = history.sent
    else:
        return history.position
    encoded = encode_batch([event for _, event in batch.events], types=types, metadata=metadata)
    identified = [
        event._replace(event_id=event_id)
        for event, (event_id, _) in zip(encoded, batch.events, strict=True)
    ]
    sent = StreamBatch(
        history.stream,
        contents.outgoing(conn, identified, tenant=history.stream.tenant),
        batch.expected_version,
        position=batch.after if batch.expected_version else None,
    )
    appended = append_events(conn, sent, schema=schema)
    history.sent = batch
    history.unsaved.clear()
    history.position = appended.position
    return appended.position
