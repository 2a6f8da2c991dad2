"""What the handlers of a read model in Redis make of events."""

from collections.abc import Iterable, Sequence

from datapatterns.cqrs.definition import RedisProjection
from datapatterns.cqrs.in_redis.redis_changes import RedisChanges
from datapatterns.cqrs.tables.folding import handlers_by_class
from datapatterns.event_sourcing.log.decoding import decode_each
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.states.decider import refuse_unfinished
from datapatterns.event_sourcing.store import EventStore


def fold_changes(
    store: EventStore,
    projection: type[RedisProjection],
    events: Sequence[RecordedEvent],
    changes: RedisChanges | None = None,
) -> RedisChanges:
    """Return what the handlers of ``projection`` make of ``events``, in ``changes`` if given."""
    changes = RedisChanges() if changes is None else changes
    fold_decoded(projection(), decode_each(store.types, events), changes)
    return changes


def fold_decoded(
    instance: RedisProjection,
    decoded: Iterable[tuple[object, RecordedEvent]],
    changes: RedisChanges,
) -> None:
    """Add to ``changes`` what the handlers make of events, each of which comes with its record."""
    handlers = handlers_by_class(instance)
    for event, meta in decoded:
        for handler in handlers.get(type(event), ()):
            outcome = handler.apply(instance, changes, event, meta)
            if outcome is not None:
                refuse_unfinished(outcome, "a handler")
