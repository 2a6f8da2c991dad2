"""Event sourcing: keep what happened, derive what is."""

from datapatterns.event_sourcing.event_types import EventTypes, event, upcast
from datapatterns.event_sourcing.events import (
    ANY,
    EXISTS,
    NEW_STREAM,
    START,
    Appended,
    Blocker,
    Expected,
    LogPage,
    NewEvent,
    Position,
    RecordedEvent,
    StreamId,
)
from datapatterns.event_sourcing.store import EventStore

__all__ = [
    "ANY",
    "EXISTS",
    "NEW_STREAM",
    "START",
    "Appended",
    "Blocker",
    "EventStore",
    "EventTypes",
    "Expected",
    "LogPage",
    "NewEvent",
    "Position",
    "RecordedEvent",
    "StreamId",
    "event",
    "upcast",
]
