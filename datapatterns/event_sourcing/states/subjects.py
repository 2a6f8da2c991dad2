"""What can be loaded: the class of an aggregate, or a decider. Here is what they have in common."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

from datapatterns.errors import EventTypeError
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.states.aggregate import Aggregate
from datapatterns.event_sourcing.states.decider import Decider, Folded
from datapatterns.event_sourcing.states.sourced import Sourced

Subject: TypeAlias = type[Aggregate] | Decider[Any, Any, Any]
Apply: TypeAlias = Callable[[Any, Any], None]
"""Takes what was loaded so far, and an event."""


def beginning(subject: Subject, key: str, tenant: str) -> Sourced:
    """Return what the stream with that key is before its first event."""
    # A class with an __init__ of its own need not know of tenants before it has one.
    made: Sourced = subject(key, tenant=tenant) if tenant else subject(key)
    return made


def subject_of(sourced: Sourced) -> Subject:
    """Return what made ``sourced``."""
    if isinstance(sourced, Folded):
        return sourced.decider
    assert isinstance(sourced, Aggregate)
    return type(sourced)


def subject_name(subject: Subject) -> str:
    """Return what its snapshots are stored under."""
    return subject.category if isinstance(subject, Decider) else subject.__qualname__


def apply_of(subject: Subject, event: type) -> Apply | None:
    """Return what applies an event of that class; None if the subject refuses it, with words."""
    if isinstance(subject, Decider):
        return Folded._apply  # noqa: SLF001 -- its own
    return subject._handlers.get(event)  # noqa: SLF001 -- its own


def event_classes(subject: Subject) -> tuple[type, ...]:
    """Return the classes of events that the subject says it takes."""
    if isinstance(subject, Decider):
        return subject.events
    return tuple(subject._handlers)  # noqa: SLF001 -- its own


def stored_names(subject: Subject, types: EventTypes) -> list[str]:
    """Return the names under which its events are stored, as far as they are known."""
    return _stored_names(subject, types, types.revision)


@lru_cache(maxsize=1_000)
def _stored_names(subject: Subject, types: EventTypes, _revision: int) -> list[str]:
    names: set[str] = set()
    for cls in event_classes(subject):
        try:
            names |= types.stored_names(cls)
        except EventTypeError:  # it cannot be stored, then; another store may know it
            continue
    return sorted(names)
