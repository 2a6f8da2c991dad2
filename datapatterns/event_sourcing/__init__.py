"""Event sourcing: keep what happened, derive what is."""

from datapatterns.event_sourcing.aggregate import Aggregate
from datapatterns.event_sourcing.batching import StreamEvents
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
from datapatterns.event_sourcing.forgetting import forget_append_requests
from datapatterns.event_sourcing.handling import applies
from datapatterns.event_sourcing.importing import ImportedEvent
from datapatterns.event_sourcing.policy import SnapshotPolicy, every, slower_than
from datapatterns.event_sourcing.store import EventStore
from datapatterns.event_sourcing.tag_query import Condition, Tagged, TaggedPage, TagQuery

__all__ = [
    "ANY",
    "EXISTS",
    "NEW_STREAM",
    "START",
    "Aggregate",
    "Appended",
    "Blocker",
    "Condition",
    "EventStore",
    "EventTypes",
    "Expected",
    "ImportedEvent",
    "LogPage",
    "NewEvent",
    "Position",
    "RecordedEvent",
    "SnapshotPolicy",
    "StreamEvents",
    "StreamId",
    "TagQuery",
    "Tagged",
    "TaggedPage",
    "applies",
    "event",
    "every",
    "forget_append_requests",
    "slower_than",
    "upcast",
]
