"""Save what an aggregate has emitted."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from datapatterns.event_sourcing.aggregate import Aggregate, Batch
from datapatterns.event_sourcing.appending import append_events, encode_batch
from datapatterns.event_sourcing.event_types import EventTypes
from datapatterns.event_sourcing.events import Position


def save_aggregate(
    conn: Connection,
    aggregate: Aggregate,
    *,
    schema: str,
    types: EventTypes,
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
    appended = append_events(
        conn,
        history.stream,
        [
            event._replace(event_id=event_id)
            for event, (event_id, _) in zip(encoded, batch.events, strict=True)
        ],
        schema=schema,
        expected_version=batch.expected_version,
        position=batch.after if batch.expected_version else None,
    )
    history.sent = batch
    history.unsaved.clear()
    history.position = appended.position
    return appended.position
