"""Read the log page by page, as far as a projection wants it."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from datapatterns.cqrs.definition import AnyProjection
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.recorded import LogPage, RecordedEvent
from datapatterns.event_sourcing.store import EventStore


class PageOfEvents(NamedTuple):
    """Events that meet a handler, and up to where no other does.

    Attributes:
        caught_up: Nothing further is to be read for now.
        mark: Up to where the log was final; None if nobody looked.
    """

    events: Sequence[RecordedEvent]
    checkpoint: Position
    caught_up: bool
    mark: Position | None = None


def read_page(  # noqa: PLR0913 -- what a reader knows
    conn: Connection,
    store: EventStore,
    projection: type[AnyProjection],
    after: Position,
    limit: int,
    *,
    until: Position | None = None,
    mark: Position | None = None,
) -> PageOfEvents:
    """Return the next page of the events that meet a handler of ``projection``.

    Args:
        conn: A connection in a transaction.
        store: Where the events are.
        projection: Whose handlers.
        after: The checkpoint.
        limit: At most so many events.
        until: Nothing behind this position.
        mark: That of an earlier page, which saves asking for it while it is far ahead.

    Raises:
        CheckpointError: ``after`` lies beyond the log.
        EventTypeError: A handler's class is not an event.
    """
    if until is not None and until <= after:
        return PageOfEvents([], after, caught_up=True)
    far_ahead = mark is not None and mark - after > limit
    asked = LogPage([], after, mark) if mark is not None and far_ahead else after
    page = store.read_log(conn, asked, limit=limit, event_types=stored_types(store, projection))
    if until is None or page.checkpoint < until:
        # More may have become final since an old mark was read.
        caught_up = page.caught_up and not far_ahead
        return PageOfEvents(page.events, page.checkpoint, caught_up, page.mark)
    events = [event for event in page.events if event.position <= until]
    return PageOfEvents(events, until, caught_up=True, mark=page.mark)


def stored_types(store: EventStore, projection: type[AnyProjection]) -> list[str]:
    """Return the names under which events are stored that meet a handler of ``projection``.

    Raises:
        EventTypeError: A handler's class is not an event.
    """
    types: set[str] = set()
    for handler in projection.handlers:
        types |= store.types.stored_names(handler.event_class)
    return sorted(types)
