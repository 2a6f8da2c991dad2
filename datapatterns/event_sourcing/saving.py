"""Save what an aggregate has emitted."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from datapatterns.event_sourcing.aggregate import Aggregate
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
        batch = (history.version - len(history.unsaved), list(history.unsaved))
    elif history.sent is not None:
        batch = history.sent
    else:
        return history.position
    expected_version, emitted = batch
    encoded = encode_batch([event for _, event in emitted], types=types, metadata=metadata)
    appended = append_events(
        conn,
        history.stream,
        [event._replace(event_id=id_) for event, id_ in zip(encoded, _ids(emitted), strict=True)],
        schema=schema,
        expected_version=expected_version,
    )
    history.sent = batch
    history.unsaved.clear()
    history.position = appended.position
    return appended.position


def _ids(emitted: Sequence[tuple[UUID, object]]) -> list[UUID]:
    return [event_id for event_id, _ in emitted]
