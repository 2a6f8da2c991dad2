"""State that stands somewhere in its stream: what aggregates and deciders have in common."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID, uuid4

from datapatterns.event_sourcing.content.shapes import field_names
from datapatterns.event_sourcing.events import START, Position, StreamId
from datapatterns.event_sourcing.states.state import UNCHANGING


class Batch(NamedTuple):
    """What a save sends: the events with their ids, and the event that they follow."""

    expected_version: int
    after: Position
    events: list[tuple[UUID, object]]


@dataclass(slots=True)
class History:
    """Where a state stands in its stream.

    Attributes:
        version: Of the state, events that are not saved among them.
        position: Of the last event that was loaded or saved.
        snapshot_version: Of the snapshot that the load began with, or that was last written.
        load_seconds: How long the load took.
        loaded_bytes: The size of the events that the load folded, if the policy asks for it.
        folded: The classes of events since the snapshot that the policy asks for.
        unsaved: Events emitted since the last save, with their ids.
        sent: The batch of the last save, for a retry.
        persons: Whose personal data may be in the state.
    """

    stream: StreamId
    version: int = 0
    position: Position = START
    snapshot_version: int = 0
    load_seconds: float = 0.0
    loaded_bytes: int = 0
    folded: set[type] = field(default_factory=set)
    unsaved: list[tuple[UUID, object]] = field(default_factory=list)
    sent: Batch | None = None
    persons: set[str] = field(default_factory=set)


class Sourced:
    """State of one stream: `EventStore.load` makes it, `EventStore.save` appends what it emits."""

    _history: History

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._history.stream} at version {self._history.version}>"

    @property
    def stream(self) -> StreamId:
        """The stream that holds its events."""
        return self._history.stream

    @property
    def version(self) -> int:
        """The number of events that made this state, those not yet saved among them."""
        return self._history.version

    @property
    def unsaved(self) -> tuple[object, ...]:
        """The events emitted since the last save, oldest first."""
        return tuple(event for _, event in self._history.unsaved)

    def emit(self, event: object) -> None:
        """Let ``event`` have happened: change the state, and keep it for `EventStore.save`.

        Raises:
            AggregateError: No handler applies it.
        """
        # The state may go on with a list of the event, and change it before it is saved.
        kept = event if is_unchanging(event) else deepcopy(event)
        self._apply(event)
        self._history.unsaved.append((uuid4(), kept))
        self._history.version += 1

    def _apply(self, event: object) -> None:
        raise NotImplementedError


def is_unchanging(value: object) -> bool:
    """Return whether nothing within ``value`` can be changed, as far as that is plain to see."""
    if isinstance(value, UNCHANGING):
        return True
    names = field_names(type(value))
    return bool(names) and all(isinstance(getattr(value, n, None), UNCHANGING) for n in names)
